"""X-MOD: a RoBERTa with an adapter of its own for each language, behind the feed-forward.

That adapter uses the dropout and the norm of the feed-forward a second time, so what the
feed-forward adds (`ffn.out`) and the norm of the block (`block.out`) are left out.
"""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    attention,
    input_of,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="xmod",
        model_types=("xmod",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="encoder.layer",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("attention.self.query"),
                    Site.ATTN_K: output("attention.self.key"),
                    Site.ATTN_V: output("attention.self.value"),
                    Site.ATTN_MID: input_of("attention.output.dense"),
                    Site.ATTN_O: output("attention.output.dense"),
                    Site.ATTN_KV: attention("attention.self"),
                    Site.ATTN_OUT: output("attention.output.dropout", reads="attention.self.query"),
                    Site.FFN_UP: output("intermediate.dense"),
                    Site.FFN_MID: input_of("output.dense"),
                    Site.FFN_DOWN: output("output.dense"),
                },
            ),
        ),
        embedded=Embedded(location=output("embeddings")),
        tokens=Tokens(position=1),
        positions="embeddings.position_embeddings",
    )
)
