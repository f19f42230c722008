"""Phi 1 and 2: attention and a plain feed-forward side by side, behind one norm."""

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

register_family(
    Family(
        name="phi",
        model_types=("phi",),
        stacks=(
            LayerStack(
                name="decoder",
                layers="layers",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("self_attn.q_proj"),
                    Site.ATTN_K: output("self_attn.k_proj"),
                    Site.ATTN_V: output("self_attn.v_proj"),
                    Site.ATTN_MID: input_of("self_attn.dense"),
                    Site.ATTN_O: output("self_attn.dense"),
                    Site.ATTN_KV: attention("self_attn"),
                    # One dropout module serves attention and feed-forward, so it is no site.
                    Site.ATTN_OUT: output("self_attn.dense", reads="self_attn.q_proj"),
                    Site.FFN_UP: output("mlp.fc1"),
                    Site.FFN_MID: input_of("mlp.fc2"),
                    Site.FFN_DOWN: output("mlp.fc2"),
                    Site.FFN_OUT: output("mlp"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
