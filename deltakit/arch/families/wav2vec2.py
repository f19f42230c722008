"""Speech encoders like wav2vec 2.0 and HuBERT, post-LN or pre-LN by their config."""

from collections.abc import Mapping
from typing import Any

from deltakit.arch.family import (
    Family,
    LayerStack,
    Location,
    attention,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site

_FFN = "feed_forward.intermediate_dense"
_SITES = {
    Site.ATTN_Q: output("attention.q_proj"),
    Site.ATTN_K: output("attention.k_proj"),
    Site.ATTN_V: output("attention.v_proj"),
    Site.ATTN_MID: input_of("attention.out_proj"),
    Site.ATTN_O: output("attention.out_proj"),
    Site.ATTN_KV: attention("attention"),
    Site.ATTN_OUT: output("dropout", reads="attention.q_proj"),
    Site.FFN_UP: output(_FFN),
    Site.FFN_MID: input_of("feed_forward.output_dense"),
    Site.FFN_DOWN: output("feed_forward.output_dense"),
    Site.FFN_OUT: output("feed_forward"),
}


def _sites(config: Any) -> Mapping[Site, Location]:
    if not getattr(config, "do_stable_layer_norm", False):
        return {**_SITES, Site.BLOCK_OUT: norm("final_layer_norm")}
    stream = output("feed_forward", reads="final_layer_norm")
    return {**_SITES, Site.FFN_STREAM: stream, Site.BLOCK_OUT: output("")}


register_family(
    Family(
        name="wav2vec2",
        model_types=("wav2vec2", "hubert", "unispeech", "unispeech-sat", "data2vec-audio"),
        stacks=(
            LayerStack(
                name="encoder", layers="encoder.layers", activation="hidden_act", sites=_sites
            ),
        ),
    )
)
