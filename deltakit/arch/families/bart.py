"""BART and Marian (post-LN), mBART, Pegasus, M2M-100 (NLLB), BlenderBot and Whisper (pre-LN).

Encoder, decoder, and the decoder's attention across as a stack of its own.

The dropouts before the residual additions are not modules, so attn.out and ffn.out are before them.
"""

from deltakit.arch.family import (
    Embedded,
    Family,
    LayerStack,
    Location,
    Tokens,
    attention,
    input_of,
    norm,
    output,
    register_family,
)
from deltakit.core.site import Site


def _attention(path: str) -> dict[Site, Location]:
    return {
        Site.ATTN_Q: output(f"{path}.q_proj"),
        Site.ATTN_K: output(f"{path}.k_proj"),
        Site.ATTN_V: output(f"{path}.v_proj"),
        Site.ATTN_MID: input_of(f"{path}.out_proj"),
        Site.ATTN_O: output(f"{path}.out_proj"),
        Site.ATTN_KV: attention(path),
        Site.ATTN_OUT: output(f"{path}.out_proj", reads=f"{path}.q_proj"),
    }


def _stacks(block_out: Location) -> tuple[LayerStack, ...]:
    sites = {
        **_attention("self_attn"),
        Site.FFN_UP: output("fc1"),
        Site.FFN_MID: input_of("fc2"),
        Site.FFN_DOWN: output("fc2"),
        Site.FFN_OUT: output("fc2", reads="fc1"),
        Site.BLOCK_OUT: block_out,
    }
    return (
        *(
            LayerStack(
                name=name,
                layers=f"{name}.layers",
                activation="activation_function",
                sites=sites,
                optional=True,
            )
            for name in ("encoder", "decoder")
        ),
        LayerStack(
            name="cross", layers="decoder.layers", sites=_attention("encoder_attn"), optional=True
        ),
    )


_TOKENS = Tokens(path="encoder", reader="decoder")
_TABLES = {"encoder": "encoder.embed_tokens", "decoder": "decoder.embed_tokens"}

register_family(
    Family(
        name="bart",
        model_types=("bart", "marian", "plbart", "blenderbot-small"),
        stacks=_stacks(norm("final_layer_norm")),
        embedded=Embedded(location=output("encoder.layernorm_embedding")),
        tokens=_TOKENS,
        tables=_TABLES,
    )
)
register_family(
    Family(
        name="mbart",
        model_types=("mbart", "m2m_100", "pegasus", "blenderbot"),
        stacks=_stacks(output("")),
        embedded=Embedded(location=output("encoder.layernorm_embedding")),
        tokens=_TOKENS,
        tables=_TABLES,
    )
)
register_family(
    Family(
        name="whisper",
        model_types=("whisper",),
        stacks=_stacks(output("")),
        tables={"decoder": "decoder.embed_tokens"},  # the encoder is given sound
    )
)
