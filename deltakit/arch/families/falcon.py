"""Falcon: fused projections in three layouts; it computes its attention itself.

Heads have their own keys and values (RW), share one (7B), or share one in groups (40B, 180B).
"""

from collections.abc import Mapping
from typing import Any

from deltakit.arch.family import (
    ColumnsOf,
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
from deltakit.core.site import Columns, Site


def _columns(index: int) -> ColumnsOf:
    """Query (0), key (1) or value (2) of the fused projection."""

    def columns(config: Any) -> Columns:
        width = config.hidden_size // config.num_attention_heads
        if config.new_decoder_architecture:
            groups = config.num_kv_heads
            queries = config.num_attention_heads // groups
        elif config.multi_query:
            groups, queries = 1, config.num_attention_heads
        else:
            return head_thirds(index)(config)
        first = (0, queries, queries + 1)[index] * width
        own = width if index else queries * width
        return Columns(first=first, width=own, stride=(queries + 2) * width, count=groups)

    return columns


def _sites(config: Any) -> Mapping[Site, Location]:
    fused = "self_attention.query_key_value"
    return {
        Site.ATTN_Q: output(fused, columns=_columns(0)),
        Site.ATTN_K: output(fused, columns=_columns(1)),
        Site.ATTN_V: output(fused, columns=_columns(2)),
        Site.ATTN_MID: input_of("self_attention.dense"),
        Site.ATTN_O: output("self_attention.dense"),
        Site.ATTN_OUT: output("self_attention.dense", reads=fused),
        Site.FFN_UP: output("mlp.dense_h_to_4h"),
        Site.FFN_MID: input_of("mlp.dense_4h_to_h"),
        Site.FFN_DOWN: output("mlp.dense_4h_to_h"),
        Site.FFN_OUT: output("mlp"),
        Site.BLOCK_OUT: output(""),
    }


register_family(
    Family(
        name="falcon",
        model_types=("falcon",),
        stacks=(LayerStack(name="decoder", layers="h", activation="activation", sites=_sites),),
        embedded=Embedded(location=input_of("h.0")),
        tokens=Tokens(),
    )
)
