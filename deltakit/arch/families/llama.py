"""Llama and the decoders that share its layer, pre-LN with a gated FFN: Mistral, Qwen, Gemma, ...

In some (Cohere, StableLM) attention and FFN read the stream side by side: the sites are the same.
Granite scales what is added to the stream, so a change of it is no site there. The model that sees
and reads (mistral3) has the same layers one level down.
"""

from collections.abc import Mapping
from dataclasses import replace
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
    Site.FFN_GATE: output("mlp.gate_proj"),
    Site.FFN_UP: output("mlp.up_proj"),
    Site.FFN_MID: input_of("mlp.down_proj"),
    Site.FFN_DOWN: output("mlp.down_proj"),
    Site.FFN_OUT: output("mlp"),
    Site.BLOCK_OUT: output(""),
}


_ADDED = (Site.ATTN_OUT, Site.FFN_OUT, Site.FFN_STREAM)


def _sites(config: Any) -> Mapping[Site, Location]:
    """The sites; attention and FFN side by side read one norm, and no stream between them."""
    side_by_side = config.model_type in ("cohere", "cohere2") or (
        config.model_type == "stablelm" and config.use_parallel_residual
    )
    stream = (
        {} if side_by_side else {Site.FFN_STREAM: output("mlp", reads="post_attention_layernorm")}
    )
    sites = {**_SITES, **stream}
    if config.model_type == "granite":
        return {site: place for site, place in sites.items() if site not in _ADDED}
    return sites


_LLAMA = register_family(
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
            "granite",
            "helium",
            "hunyuan_v1_dense",
            "ministral",
            "olmo",
            "seed_oss",
            "smollm3",
            "stablelm",
        ),
        stacks=(
            LayerStack(
                name="decoder",
                layers="layers",
                sites=_sites,
            ),
        ),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
# Its layers read the positions too, to scale the queries.
register_family(replace(_LLAMA, name="ministral3", model_types=("ministral3",), positions=None))
register_family(
    Family(
        name="mistral3",
        model_types=("mistral3",),
        stacks=(
            LayerStack(
                name="decoder",
                layers="language_model.layers",
                config="text_config",
                sites=_SITES,
            ),
        ),
        tables={"input": "language_model.embed_tokens"},
    )
)
