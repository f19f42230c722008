"""ModernBERT, pre-LN, with fused query, key and value and a fused gated FFN, gate first."""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Tokens,
    attention,
    halves,
    input_of,
    output,
    register_family,
    thirds,
)
from deltakit.core.site import Site

register_family(
    Family(
        name="modernbert",
        model_types=("modernbert",),
        stacks=(
            LayerStack(
                name="encoder",
                layers="layers",
                sites={
                    Site.ATTN_Q: output("attn.Wqkv", columns=thirds(0)),
                    Site.ATTN_K: output("attn.Wqkv", columns=thirds(1)),
                    Site.ATTN_V: output("attn.Wqkv", columns=thirds(2)),
                    Site.ATTN_MID: input_of("attn.Wo"),
                    Site.ATTN_O: output("attn.Wo"),
                    Site.ATTN_KV: attention("attn"),
                    Site.ATTN_OUT: output("attn.out_drop", reads="attn.Wqkv"),
                    Site.FFN_GATE: output("mlp.Wi", columns=halves(0)),
                    Site.FFN_UP: output("mlp.Wi", columns=halves(1)),
                    Site.FFN_MID: input_of("mlp.Wo"),
                    Site.FFN_DOWN: output("mlp.Wo"),
                    Site.FFN_OUT: output("mlp"),
                    Site.BLOCK_OUT: output(""),
                },
            ),
        ),
        embedded=Embedded(location=output("embeddings")),
        tokens=Tokens(position=1),
        positions="rotary_emb",
    )
)
