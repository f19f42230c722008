"""BERT and the encoders that share its layer, post-LN: RoBERTa, XLM-R, ELECTRA, ERNIE, ...

As the decoder of an encoder-decoder its layers attend across too: the stack "cross".
"""

from collections.abc import Mapping
from typing import Any

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Location,
    Tokens,
    attention,
    embedding_size,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site

_CROSS = {
    Site.ATTN_Q: output("crossattention.self.query"),
    Site.ATTN_K: output("crossattention.self.key"),
    Site.ATTN_V: output("crossattention.self.value"),
    Site.ATTN_MID: input_of("crossattention.output.dense"),
    Site.ATTN_O: output("crossattention.output.dense"),
    Site.ATTN_KV: attention("crossattention.self"),
    Site.ATTN_OUT: output("crossattention.output.dropout", reads="crossattention.self.query"),
}


def _cross(config: Any) -> Mapping[Site, Location]:
    return _CROSS if getattr(config, "add_cross_attention", False) else {}


register_family(
    Family(
        name="bert",
        model_types=(
            "bert",
            "roberta",
            "xlm-roberta",
            "camembert",
            "electra",
            "bert-generation",
            "data2vec-text",
            "ernie",
            "layoutlm",
            "splinter",
        ),
        stacks=(
            LayerStack(
                name="encoder",
                layers="encoder.layer",
                activation="hidden_act",
                sites={
                    Site.ATTN_Q: output("attention.self.query"),
                    Site.ATTN_K: output("attention.self.key"),
                    Site.ATTN_V: output("attention.self.value"),
                    Site.ATTN_MID: input_of("attention.output.dense"),
                    Site.ATTN_O: output("attention.output.dense"),
                    Site.ATTN_KV: attention("attention.self"),
                    Site.ATTN_OUT: output("attention.output.dropout", reads="attention.self.query"),
                    Site.FFN_UP: output("intermediate.dense"),
                    Site.FFN_MID: input_of("output.dense"),
                    Site.FFN_DOWN: output("output.dense"),
                    Site.FFN_OUT: output("output.dropout", reads="intermediate.dense"),
                    Site.BLOCK_OUT: norm("output.LayerNorm"),
                },
            ),
            LayerStack(name="cross", layers="encoder.layer", sites=_cross),
        ),
        embedded=Embedded(location=output("embeddings"), width=embedding_size),
        tokens=Tokens(position=1),
        positions="embeddings.position_embeddings",
    )
)
