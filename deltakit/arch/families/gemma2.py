"""Gemma 2 and 3, OLMo 2 and 3, EXAONE 4: what is added to the stream leaves a norm of its own.

The models that see and read (gemma3) have the same layers one level down.
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

_SITES = {
    Site.ATTN_Q: output("self_attn.q_proj"),
    Site.ATTN_K: output("self_attn.k_proj"),
    Site.ATTN_V: output("self_attn.v_proj"),
    Site.ATTN_MID: input_of("self_attn.o_proj"),
    Site.ATTN_O: output("self_attn.o_proj"),
    Site.ATTN_KV: attention("self_attn"),
    Site.ATTN_OUT: output("post_attention_layernorm", reads="self_attn.q_proj"),
    Site.FFN_GATE: output("mlp.gate_proj"),
    Site.FFN_UP: output("mlp.up_proj"),
    Site.FFN_MID: input_of("mlp.down_proj"),
    Site.FFN_DOWN: output("mlp.down_proj"),
    Site.FFN_OUT: output("post_feedforward_layernorm", reads="mlp.gate_proj"),
    Site.BLOCK_OUT: output(""),
}

register_family(
    Family(
        name="gemma2",
        model_types=("gemma2", "gemma3_text", "olmo2", "olmo3", "exaone4"),
        stacks=(LayerStack(name="decoder", layers="layers", sites=_SITES),),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
register_family(
    Family(
        name="gemma3",
        model_types=("gemma3",),
        stacks=(
            LayerStack(
                name="decoder",
                layers="language_model.layers",
                config="text_config",
                sites=_SITES,
            ),
        ),
        tables={"input": "language_model.embed_tokens"},
        positions="language_model.rotary_emb",
    )
)
