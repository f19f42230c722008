"""DeBERTa 1: post-LN; fused head by head; it computes its attention itself."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    head_thirds,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site

_FUSED = "attention.self.in_proj"

register_family(
    Family(
        name="deberta",
        model_types=("deberta",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="encoder.layer",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output(_FUSED, columns=head_thirds(0)),
                    Site.ATTN_K: output(_FUSED, columns=head_thirds(1)),
                    Site.ATTN_V: output(_FUSED, columns=head_thirds(2)),
                    Site.ATTN_MID: input_of("attention.output.dense"),
                    Site.ATTN_O: output("attention.output.dense"),
                    Site.ATTN_OUT: output("attention.output.dropout", reads=_FUSED),
                    Site.FFN_UP: output("intermediate.dense"),
                    Site.FFN_MID: input_of("output.dense"),
                    Site.FFN_DOWN: output("output.dense"),
                    Site.FFN_OUT: output("output.dropout", reads="intermediate.dense"),
                    Site.BLOCK_OUT: norm("output.LayerNorm"),
                },
            ),
        ),
        embedded=Embedded(location=output("embeddings")),
        tokens=Tokens(position=1),
    )
)
