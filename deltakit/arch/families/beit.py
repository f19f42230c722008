"""BEiT: pre-LN; each sub-module's output is scaled before it is added.

The scaling is not a module, so what is added to the stream (`attn.out`, `ffn.out`) is not a site.
"""

from deltakit.arch.family import (
    Family,
    LayerStack,
    attention,
    input_of,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="beit",
        model_types=("beit",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="layers",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("attention.q_proj"),
                    Site.ATTN_K: output("attention.k_proj"),
                    Site.ATTN_V: output("attention.v_proj"),
                    Site.ATTN_MID: input_of("attention.o_proj"),
                    Site.ATTN_O: output("attention.o_proj"),
                    Site.ATTN_KV: attention("attention"),
                    Site.FFN_UP: output("mlp.fc1"),
                    Site.FFN_MID: input_of("mlp.fc2"),
                    Site.FFN_DOWN: output("mlp.fc2"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
    )
)
