"""CLIP's two towers, pre-LN, together or one alone."""

from deltakit.arch.family import (
    Family,
    LayerStack,
    attention,
    input_of,
    output,
    register_family,
)
from deltakit.core.site import Site

_SITES = {
    Site.ATTN_Q: output("self_attn.q_proj"),
    Site.ATTN_K: output("self_attn.k_proj"),
    Site.ATTN_V: output("self_attn.v_proj"),
    Site.ATTN_MID: input_of("self_attn.out_proj"),
    Site.ATTN_O: output("self_attn.out_proj"),
    Site.ATTN_KV: attention("self_attn"),
    Site.ATTN_OUT: output("self_attn.out_proj", reads="self_attn.q_proj"),
    Site.FFN_UP: output("mlp.fc1"),
    Site.FFN_MID: input_of("mlp.fc2"),
    Site.FFN_DOWN: output("mlp.fc2"),
    Site.FFN_OUT: output("mlp"),
    Site.BLOCK_OUT: output(""),
}

register_family(
    Family(
        name="clip",
        model_types=("clip",),
        stacks=tuple(
            LayerStack(
                name=tower,
                layers=f"{tower}_model.encoder.layers",
                config=f"{tower}_config",
                activation="hidden_act",
                sites=_SITES,
                optional=True,
            )
            for tower in ("text", "vision")
        ),
        tables={"text": "text_model.embeddings.token_embedding"},
    )
)
for _tower in ("text", "vision"):
    register_family(
        Family(
            name=f"clip_{_tower}",
            model_types=(f"clip_{_tower}_model",),
            stacks=(
                LayerStack(
                    name=_tower, layers="encoder.layers", activation="hidden_act", sites=_SITES
                ),
            ),
            tables={"text": "embeddings.token_embedding"},
        )
    )
