"""Llama and the decoders that share its layer, pre-LN with a gated FFN: Mistral, Qwen, Gemma, ...

In some (Cohere, StableLM) attention and FFN read the stream side by side: their sites are the same.
"""

from deltakit.arch.family import (
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
        name="llama",
        model_types=(
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "cohere",
            "cohere2",
            "ernie4_5",
            "gemma",
            "helium",
            "hunyuan_v1_dense",
            "ministral",
            "ministral3",
            "olmo",
            "seed_oss",
            "smollm3",
            "stablelm",
        ),
        stacks=(
            LayerStack(
                name="decoder",
                layers="layers",
                sites={
                    Site.ATTN_Q: output("self_attn.q_proj"),
                    Site.ATTN_K: output("self_attn.k_proj"),
                    Site.ATTN_V: output("self_attn.v_proj"),
                    Site.ATTN_O: output("self_attn.o_proj"),
                    Site.ATTN_KV: attention("self_attn"),
                    Site.ATTN_OUT: output("self_attn.o_proj", reads="self_attn.q_proj"),
                    Site.FFN_GATE: output("mlp.gate_proj"),
                    Site.FFN_UP: output("mlp.up_proj"),
                    Site.FFN_MID: input_of("mlp.down_proj"),
                    Site.FFN_DOWN: output("mlp.down_proj"),
                    Site.FFN_OUT: output("mlp"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        tokens=Tokens(),
    )
)
