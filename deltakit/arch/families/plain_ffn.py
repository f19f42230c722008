"""Decoders like Llama whose FFN has no gate: Nemotron, Arcee, StarCoder 2."""

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
)
from deltakit.core.site import Site

_SITES = {
    Site.ATTN_Q: output("self_attn.q_proj"),
    Site.ATTN_K: output("self_attn.k_proj"),
    Site.ATTN_V: output("self_attn.v_proj"),
    Site.ATTN_MID: input_of("self_attn.o_proj"),
    Site.ATTN_O: output("self_attn.o_proj"),
    Site.ATTN_KV: attention("self_attn"),
    Site.ATTN_OUT: output("self_attn.o_proj", reads="self_attn.q_proj"),
    Site.FFN_OUT: output("mlp"),
    Site.FFN_STREAM: output("mlp", reads="post_attention_layernorm"),
    Site.BLOCK_OUT: output(""),
}


def _sites(config: Any) -> Mapping[Site, Location]:
    up, down = ("c_fc", "c_proj") if config.model_type == "starcoder2" else ("up_proj", "down_proj")
    return {
        **_SITES,
        Site.FFN_UP: output(f"mlp.{up}"),
        Site.FFN_MID: input_of(f"mlp.{down}"),
        Site.FFN_DOWN: output(f"mlp.{down}"),
    }


register_family(
    Family(
        name="plain_ffn",
        model_types=("nemotron", "arcee", "starcoder2"),
        stacks=(
            LayerStack(name="decoder", layers="layers", activation="hidden_act", sites=_sites),
        ),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
