"""GPT-2, pre-LN, with query, key and value in one fused projection.

As the decoder of an encoder-decoder its layers attend across too: the stack "cross".
"""

from collections.abc import Mapping
from typing import Any

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Location,
    Tokens,
    attention,
    input_of,
    output,
    register_family,
    thirds,
)
from deltakit.core.site import Site


def _cross(config: Any) -> Mapping[Site, Location]:
    if not config.add_cross_attention:
        return {}
    return {
        Site.ATTN_Q: output("crossattention.q_attn"),
        Site.ATTN_K: output("crossattention.c_attn", columns=thirds(0)),
        Site.ATTN_V: output("crossattention.c_attn", columns=thirds(1)),
        Site.ATTN_MID: input_of("crossattention.c_proj"),
        Site.ATTN_O: output("crossattention.c_proj"),
        Site.ATTN_KV: attention("crossattention"),
        Site.ATTN_OUT: output("crossattention.resid_dropout", reads="crossattention.q_attn"),
    }


register_family(
    Family(
        name="gpt2",
        model_types=("gpt2",),
        stacks=(
            LayerStack(
                name="decoder",
                layers="h",
                activation="activation_function",
                sites={
                    Site.ATTN_Q: output("attn.c_attn", columns=thirds(0)),
                    Site.ATTN_K: output("attn.c_attn", columns=thirds(1)),
                    Site.ATTN_V: output("attn.c_attn", columns=thirds(2)),
                    Site.ATTN_MID: input_of("attn.c_proj"),
                    Site.ATTN_O: output("attn.c_proj"),
                    Site.ATTN_KV: attention("attn"),
                    Site.ATTN_OUT: output("attn.resid_dropout", reads="attn.c_attn"),
                    Site.FFN_UP: output("mlp.c_fc"),
                    Site.FFN_MID: input_of("mlp.c_proj"),
                    Site.FFN_DOWN: output("mlp.c_proj"),
                    Site.FFN_OUT: output("mlp"),
                    Site.FFN_STREAM: output("mlp", reads="ln_2"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
            LayerStack(name="cross", layers="h", sites=_cross),
        ),
        embedded=Embedded(location=input_of("h.0")),
        tokens=Tokens(),
        positions="wpe",
    )
)
