"""OPT, pre-LN; post-LN in the one size with ``do_layer_norm_before=False`` in its config.

The dropouts before the residual additions are not modules, so attn.out and ffn.out are before them.
"""

from collections.abc import Mapping
from typing import Any

from deltakit.arch.family import (
    Family,
    LayerStack,
    Location,
    Tokens,
    attention,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site


def _sites(config: Any) -> Mapping[Site, Location]:
    return {
        Site.ATTN_Q: output("self_attn.q_proj"),
        Site.ATTN_K: output("self_attn.k_proj"),
        Site.ATTN_V: output("self_attn.v_proj"),
        Site.ATTN_MID: input_of("self_attn.out_proj"),
        Site.ATTN_O: output("self_attn.out_proj"),
        Site.ATTN_KV: attention("self_attn"),
        Site.ATTN_OUT: output("self_attn.out_proj", reads="self_attn.q_proj"),
        Site.FFN_UP: output("fc1"),
        Site.FFN_MID: input_of("fc2"),
        Site.FFN_DOWN: output("fc2"),
        Site.FFN_OUT: output("fc2", reads="fc1"),
        Site.BLOCK_OUT: output("") if config.do_layer_norm_before else norm("final_layer_norm"),
    }


register_family(
    Family(
        name="opt",
        model_types=("opt",),
        stacks=(
            LayerStack(
                name="decoder",
                layers="decoder.layers",
                activation="activation_function",
                sites=_sites,
            ),
        ),
        tokens=Tokens(path="decoder"),
        positions="decoder.embed_positions",
    )
)
