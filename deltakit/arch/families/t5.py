"""T5, mT5, UMT5: pre-LN; encoder, decoder, the decoder's attention across; FFN plain or gated."""

from collections.abc import Callable, Mapping
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


def _attention(path: str, dropout: str, relative: str | None = None) -> dict[Site, Location]:
    return {
        Site.ATTN_Q: output(f"{path}.q"),
        Site.ATTN_K: output(f"{path}.k"),
        Site.ATTN_V: output(f"{path}.v"),
        Site.ATTN_MID: input_of(f"{path}.o"),
        Site.ATTN_O: output(f"{path}.o"),
        Site.ATTN_KV: attention(path, relative=relative),
        Site.ATTN_OUT: output(dropout, reads=f"{path}.q"),
    }


def _sites(ffn: str) -> Callable[[Any], Mapping[Site, Location]]:
    def sites(config: Any) -> Mapping[Site, Location]:
        path, own = f"{ffn}.DenseReluDense", "layer.0.SelfAttention"
        one = config.model_type != "umt5"  # which has biases in every layer
        gated = {
            Site.FFN_GATE: output(f"{path}.wi_0"),
            Site.FFN_UP: output(f"{path}.wi_1"),
        }
        plain = {Site.FFN_UP: output(f"{path}.wi")}
        first = gated if config.is_gated_act else plain
        return {
            **_attention(own, "layer.0.dropout", relative=own if one else None),
            **first,
            Site.FFN_MID: input_of(f"{path}.wo"),
            Site.FFN_DOWN: output(f"{path}.wo"),
            Site.FFN_OUT: output(f"{ffn}.dropout", reads=first[Site.FFN_UP].path),
            Site.FFN_STREAM: output(f"{ffn}.dropout", reads=f"{ffn}.layer_norm"),
            Site.BLOCK_OUT: output(""),
        }

    return sites


register_family(
    Family(
        name="t5",
        model_types=("t5", "mt5", "umt5"),
        stacks=(
            LayerStack(
                name="encoder",
                layers="encoder.block",
                activation="dense_act_fn",
                sites=_sites("layer.1"),
            ),
            LayerStack(
                name="decoder",
                layers="decoder.block",
                activation="dense_act_fn",
                sites=_sites("layer.2"),
                optional=True,
            ),
            LayerStack(
                name="cross",
                layers="decoder.block",
                sites=_attention("layer.1.EncDecAttention", "layer.1.dropout"),
                optional=True,
            ),
        ),
        embedded=Embedded(location=input_of("encoder.block.0")),
        tokens=Tokens(path="encoder", reader="decoder"),
        tables={"encoder": "encoder.embed_tokens", "decoder": "decoder.embed_tokens"},
    )
)
