"""GPT-NeoX, pre-LN, parallel or sequential, with query, key and value of each head side by side."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    attention,
    head_thirds,
    input_of,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="gpt_neox",
        model_types=("gpt_neox",),
        stacks=(
            LayerStack(
                name="decoder",
                layers="layers",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("attention.query_key_value", columns=head_thirds(0)),
                    Site.ATTN_K: output("attention.query_key_value", columns=head_thirds(1)),
                    Site.ATTN_V: output("attention.query_key_value", columns=head_thirds(2)),
                    Site.ATTN_MID: input_of("attention.dense"),
                    Site.ATTN_O: output("attention.dense"),
                    Site.ATTN_KV: attention("attention"),
                    Site.ATTN_OUT: output(
                        "post_attention_dropout", reads="attention.query_key_value"
                    ),
                    Site.FFN_UP: output("mlp.dense_h_to_4h"),
                    Site.FFN_MID: input_of("mlp.dense_4h_to_h"),
                    Site.FFN_DOWN: output("mlp.dense_4h_to_h"),
                    Site.FFN_OUT: output("post_mlp_dropout", reads="mlp.dense_h_to_4h"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        embedded=Embedded(location=input_of("layers.0")),
        tokens=Tokens(),
        positions="rotary_emb",
    )
)
