"""GLM and GLM 4: pre-LN with a fused gated FFN; in GLM 4 what is added leaves a norm of its own."""

from collections.abc import Mapping
from typing import Any

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Location,
    Tokens,
    attention,
    halves,
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
    Site.FFN_GATE: output("mlp.gate_up_proj", columns=halves(0)),
    Site.FFN_UP: output("mlp.gate_up_proj", columns=halves(1)),
    Site.FFN_MID: input_of("mlp.down_proj"),
    Site.FFN_DOWN: output("mlp.down_proj"),
    Site.BLOCK_OUT: output(""),
}
_PLAIN = {
    Site.ATTN_OUT: output("self_attn.o_proj", reads="self_attn.q_proj"),
    Site.FFN_OUT: output("mlp"),
    Site.FFN_STREAM: output("mlp", reads="post_attention_layernorm"),
}
_NORMED = {
    Site.ATTN_OUT: output("post_self_attn_layernorm", reads="self_attn.q_proj"),
    Site.FFN_OUT: output("post_mlp_layernorm", reads="mlp.gate_up_proj"),
}


def _sites(config: Any) -> Mapping[Site, Location]:
    return {**_SITES, **(_NORMED if config.model_type == "glm4" else _PLAIN)}


register_family(
    Family(
        name="glm",
        model_types=("glm", "glm4"),
        stacks=(LayerStack(name="decoder", layers="layers", sites=_sites),),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
