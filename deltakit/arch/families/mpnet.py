"""MPNet, post-LN. It computes its attention itself, so nothing joins its keys and values."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="mpnet",
        model_types=("mpnet",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="encoder.layer",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("attention.attn.q"),
                    Site.ATTN_K: output("attention.attn.k"),
                    Site.ATTN_V: output("attention.attn.v"),
                    Site.ATTN_MID: input_of("attention.attn.o"),
                    Site.ATTN_O: output("attention.attn.o"),
                    Site.ATTN_OUT: output("attention.dropout", reads="attention.attn.q"),
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
