"""DeBERTa-v2 and v3, post-LN. It computes its attention itself, where keys and values are joined.

Its queries and keys project the relative positions too, where the model shares those weights: a
delta at attn.q or attn.k then changes both, as a change of the weights would, and x is read where
the attention module gets it.
"""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    disentangled,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="deberta_v2",
        model_types=("deberta-v2",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="encoder.layer",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("attention.self.query_proj"),
                    Site.ATTN_K: output("attention.self.key_proj"),
                    Site.ATTN_V: output("attention.self.value_proj"),
                    Site.ATTN_MID: input_of("attention.output.dense"),
                    Site.ATTN_O: output("attention.output.dense"),
                    Site.ATTN_KV: disentangled("attention.self"),
                    Site.ATTN_OUT: output("attention.output.dropout", reads="attention.self"),
                    Site.FFN_UP: output("intermediate.dense"),
                    Site.FFN_MID: input_of("output.dense"),
                    Site.FFN_DOWN: output("output.dense"),
                    Site.FFN_OUT: output("output.dropout", reads="intermediate.dense"),
                    Site.BLOCK_OUT: norm("output.LayerNorm"),
                },
            ),
        ),
        embedded=Embedded(location=output("embeddings")),
        tokens=Tokens(position=1),
    )
)
