"""Phi-3, pre-LN, with fused query, key and value (fewer of the last two) and a fused gated FFN."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    attention,
    grouped_thirds,
    halves,
    input_of,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="phi3",
        model_types=("phi3",),
        stacks=(
            LayerStack(
                name="decoder",
                layers="layers",
                sites={
                    Site.ATTN_Q: output("self_attn.qkv_proj", columns=grouped_thirds(0)),
                    Site.ATTN_K: output("self_attn.qkv_proj", columns=grouped_thirds(1)),
                    Site.ATTN_V: output("self_attn.qkv_proj", columns=grouped_thirds(2)),
                    Site.ATTN_MID: input_of("self_attn.o_proj"),
                    Site.ATTN_O: output("self_attn.o_proj"),
                    Site.ATTN_KV: attention("self_attn"),
                    Site.ATTN_OUT: output("resid_attn_dropout", reads="self_attn.qkv_proj"),
                    Site.FFN_GATE: output("mlp.gate_up_proj", columns=halves(0)),
                    Site.FFN_UP: output("mlp.gate_up_proj", columns=halves(1)),
                    Site.FFN_MID: input_of("mlp.down_proj"),
                    Site.FFN_DOWN: output("mlp.down_proj"),
                    Site.FFN_OUT: output("resid_mlp_dropout", reads="mlp.gate_up_proj"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
