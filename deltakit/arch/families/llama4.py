"""Llama 4's language model, pre-LN: some layers have a mixture of experts for their feed-forward.

The mixture returns rows and tokens on one axis. As the experts of a layer are one tensor, the sites
in the feed-forward are left out; the feed-forward as a whole is one module.
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
    Site.ATTN_OUT: output("self_attn.o_proj", reads="self_attn.q_proj"),
    Site.FFN_OUT: output("feed_forward"),
    Site.BLOCK_OUT: output(""),
}

register_family(
    Family(
        name="llama4",
        model_types=("llama4_text",),
        stacks=(LayerStack(name="decoder", layers="layers", sites=_SITES),),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
    )
)
