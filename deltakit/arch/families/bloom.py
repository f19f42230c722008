"""BLOOM, pre-LN, with query, key and value of each head side by side.

It computes its attention itself, so nothing joins its keys and values. Attention and feed-forward
add the residual stream in themselves, so what they add to it is their last projection; the dropout
between the two is not a module. With ``slow_but_exact`` those projections are not called at all.
"""

from collections.abc import Mapping
from typing import Any

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Location,
    Tokens,
    head_thirds,
    input_of,
    output,
    register_family,
)
from deltakit.core.site import Site

_FUSED = "self_attention.query_key_value"


def _sites(config: Any) -> Mapping[Site, Location]:
    firsts = {
        Site.ATTN_Q: output(_FUSED, columns=head_thirds(0)),
        Site.ATTN_K: output(_FUSED, columns=head_thirds(1)),
        Site.ATTN_V: output(_FUSED, columns=head_thirds(2)),
        Site.FFN_UP: output("mlp.dense_h_to_4h"),
        Site.BLOCK_OUT: output(""),
    }
    if config.slow_but_exact and config.pretraining_tp > 1:
        return firsts
    return {
        **firsts,
        Site.ATTN_MID: input_of("self_attention.dense"),
        Site.ATTN_O: output("self_attention.dense"),
        Site.ATTN_OUT: output("self_attention.dense", reads=_FUSED),
        Site.FFN_MID: input_of("mlp.dense_4h_to_h"),
        Site.FFN_DOWN: output("mlp.dense_4h_to_h"),
        Site.FFN_OUT: output("mlp.dense_4h_to_h", reads="mlp.dense_h_to_4h"),
    }


register_family(
    Family(
        name="bloom",
        model_types=("bloom",),
        stacks=(LayerStack(name="decoder", layers="h", sites=_sites),),
        embedded=Embedded(location=input_of("h.0")),
        tokens=Tokens(),
    )
)
