"""GPT-J: attention and a plain feed-forward side by side; it computes its attention itself."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    input_of,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="gptj",
        model_types=("gptj",),
        stacks=(
            LayerStack(
                name="decoder",
                layers="h",
                activation="activation_function",
                sites={
                    Site.ATTN_Q: output("attn.q_proj"),
                    Site.ATTN_K: output("attn.k_proj"),
                    Site.ATTN_V: output("attn.v_proj"),
                    Site.ATTN_MID: input_of("attn.out_proj"),
                    Site.ATTN_O: output("attn.out_proj"),
                    Site.ATTN_OUT: output("attn.resid_dropout", reads="attn.q_proj"),
                    Site.FFN_UP: output("mlp.fc_in"),
                    Site.FFN_MID: input_of("mlp.fc_out"),
                    Site.FFN_DOWN: output("mlp.fc_out"),
                    Site.FFN_OUT: output("mlp.dropout", reads="mlp.fc_in"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        embedded=Embedded(location=input_of("h.0")),
        tokens=Tokens(),
    )
)
