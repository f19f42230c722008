"""ALBERT, post-LN: its layers are shared, so a delta is the same one at each of their uses."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    attention,
    embedding_size,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="albert",
        model_types=("albert",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="encoder.albert_layer_groups.*.albert_layers",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("attention.query"),
                    Site.ATTN_K: output("attention.key"),
                    Site.ATTN_V: output("attention.value"),
                    Site.ATTN_MID: input_of("attention.dense"),
                    Site.ATTN_O: output("attention.dense"),
                    Site.ATTN_KV: attention("attention"),
                    Site.ATTN_OUT: output("attention.output_dropout", reads="attention.query"),
                    Site.FFN_UP: output("ffn"),
                    Site.FFN_MID: input_of("ffn_output"),
                    Site.FFN_DOWN: output("ffn_output"),
                    Site.FFN_OUT: output("ffn_output", reads="ffn"),
                    Site.BLOCK_OUT: norm("full_layer_layer_norm"),
                },
            ),
        ),
        embedded=Embedded(location=output("embeddings"), width=embedding_size),
        tokens=Tokens(position=1),
        positions="embeddings.position_embeddings",
    )
)
