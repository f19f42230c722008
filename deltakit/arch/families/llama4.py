"""Llama 4's language model: pre-LN, with mixtures of experts in some or all layers.

A mixture returns its router's scores too, so the sites in the feed-forward are left out.
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
        name="llama4",
        model_types=("llama4_text",),
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
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
