"""DistilBERT, post-LN."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    attention,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="distilbert",
        model_types=("distilbert",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="transformer.layer",
                activation="activation",
                sites={
                    Site.ATTN_Q: output("attention.q_lin"),
                    Site.ATTN_K: output("attention.k_lin"),
                    Site.ATTN_V: output("attention.v_lin"),
                    Site.ATTN_MID: input_of("attention.out_lin"),
                    Site.ATTN_O: output("attention.out_lin"),
                    Site.ATTN_KV: attention("attention"),
                    Site.ATTN_OUT: output("attention.out_lin", reads="attention.q_lin"),
                    Site.FFN_UP: output("ffn.lin1"),
                    Site.FFN_MID: input_of("ffn.lin2"),
                    Site.FFN_DOWN: output("ffn.lin2"),
                    Site.FFN_OUT: output("ffn"),
                    Site.BLOCK_OUT: norm("output_layer_norm"),
                },
            ),
        ),
        embedded=Embedded(location=output("embeddings")),
        tokens=Tokens(position=1),
        positions="embeddings.position_embeddings",
    )
)
