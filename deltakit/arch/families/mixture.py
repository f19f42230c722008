"""Mixtral and the mixtures of experts that share its layer, pre-LN.

The experts of a layer are one tensor, not linear projections, so the sites in the feed-forward are
left out; the feed-forward as a whole is one module. Some layers of some models have a plain one.
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
        name="mixture",
        model_types=(
            "mixtral",
            "qwen2_moe",
            "qwen3_moe",
            "ernie4_5_moe",
            "glm4_moe",
            "gpt_oss",
            "hunyuan_v1_moe",
            "minimax_m2",
            "olmoe",
            "phimoe",
        ),
        stacks=(
            LayerStack(
                name="decoder",
                layers="layers",
                sites={
                    Site.ATTN_Q: output("self_attn.q_proj"),
                    Site.ATTN_K: output("self_attn.k_proj"),
                    Site.ATTN_V: output("self_attn.v_proj"),
                    Site.ATTN_MID: input_of("self_attn.o_proj"),
                    Site.ATTN_O: output("self_attn.o_proj"),
                    Site.ATTN_KV: attention("self_attn"),
                    Site.ATTN_OUT: output("self_attn.o_proj", reads="self_attn.q_proj"),
                    Site.FFN_OUT: output("mlp"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
