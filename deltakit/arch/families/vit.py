"""ViT, pre-LN. One dropout serves both sub-modules, so attn.out and ffn.out are before it."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    attention,
    input_of,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="vit",
        model_types=("vit",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="layers",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("attention.q_proj"),
                    Site.ATTN_K: output("attention.k_proj"),
                    Site.ATTN_V: output("attention.v_proj"),
                    Site.ATTN_MID: input_of("attention.o_proj"),
                    Site.ATTN_O: output("attention.o_proj"),
                    Site.ATTN_KV: attention("attention"),
                    Site.ATTN_OUT: output("attention.o_proj", reads="attention.q_proj"),
                    Site.FFN_UP: output("mlp.fc1"),
                    Site.FFN_MID: input_of("mlp.fc2"),
                    Site.FFN_DOWN: output("mlp.fc2"),
                    Site.FFN_OUT: output("mlp"),
                    Site.FFN_STREAM: output("mlp", reads="layernorm_after"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        embedded=Embedded(location=output("embeddings")),
    )
)
