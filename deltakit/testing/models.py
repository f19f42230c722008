"""Tiny models of every family in deltakit, with random values everywhere.

Biases and the weights of norms are random too: zeros and ones hide bugs. What is made is the same
each time, as long as the environment's ``DELTAKIT_TEST_SEED`` is.
"""

import functools
import os
import zlib
from typing import Any

import torch
from torch import Tensor, nn

from deltakit.testing.copies import Template

SEED = int(os.environ.get("DELTAKIT_TEST_SEED", "20240607"))

_ENCODER = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_DECODER = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
}
_ENCODER_DECODER = {
    "vocab_size": 64,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "max_position_embeddings": 40,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_T5 = {
    "vocab_size": 64,
    "d_model": 16,
    "d_kv": 3,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "dropout_rate": 0.0,
    "pad_token_id": 0,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
_VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}
_CLIP_TEXT = {**_DECODER, "num_key_value_heads": 4, "projection_dim": 12}
_EXPERTS = {
    **_DECODER,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_IMAGE = 63
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _ENCODER,
    "roberta": {**_ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "electra": {**_ENCODER, "embedding_size": 12, "summary_last_dropout": 0.0},
    "distilbert": {
        "vocab_size": 64,
        "dim": 16,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 32,
        "max_position_embeddings": 40,
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "seq_classif_dropout": 0.0,
    },
    "gpt2": {
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 40,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "llama": _DECODER,
    "mistral": _DECODER,
    "qwen2": _DECODER,
    "qwen3": {**_DECODER, "head_dim": 4},
    # Two groups of layers, each used twice.
    "albert": {**_ENCODER, "embedding_size": 12, "num_hidden_layers": 4, "num_hidden_groups": 2},
    "mpnet": _ENCODER,
    "deberta-v2": {
        **_ENCODER,
        "relative_attention": True,
        "share_att_key": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_buckets": 4,
        "pooler_hidden_size": 16,
        "pooler_dropout": 0.0,
        "pad_token_id": 0,
    },
    "modernbert": {
        **_ENCODER,
        "num_hidden_layers": 2,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
        "pad_token_id": 0,
        "attention_dropout": 0.0,
        "mlp_dropout": 0.0,
        "embedding_dropout": 0.0,
        "classifier_dropout": 0.0,
    },
    "gpt_neox": {**_DECODER, "hidden_dropout": 0.0, "use_parallel_residual": True},
    "opt": {
        **_DECODER,
        "ffn_dim": 32,
        "word_embed_proj_dim": 16,
        "dropout": 0.0,
    },
    "bloom": {
        "vocab_size": 64,
        "hidden_size": 16,
        "n_layer": 2,
        "n_head": 4,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "pad_token_id": 0,
    },
    "phi3": _DECODER,
    "gemma2": {**_DECODER, "head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": 8},
    "gemma3_text": {**_DECODER, "head_dim": 4, "query_pre_attn_scalar": 4, "sliding_window": 8},
    "gemma3": {
        "text_config": {**_DECODER, "head_dim": 4, "query_pre_attn_scalar": 4},
        "vision_config": {**_VISION, "model_type": "siglip_vision_model"},
        "mm_tokens_per_image": 4,
        "image_token_id": _IMAGE,
    },
    "mixtral": _EXPERTS,
    "qwen2_moe": {**_EXPERTS, "mlp_only_layers": [1]},
    "qwen3_moe": {**_EXPERTS, "head_dim": 4},
    "t5": {**_T5, "feed_forward_proj": "relu"},
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "bart": _ENCODER_DECODER,
    "mbart": _ENCODER_DECODER,
    "vit": {**_VISION, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "clip": {
        "text_config": _CLIP_TEXT,
        "vision_config": {**_VISION, "hidden_size": 24, "projection_dim": 12},
        "projection_dim": 12,
    },
    "clip_text_model": _CLIP_TEXT,
    "clip_vision_model": {**_VISION, "projection_dim": 12},
    "whisper": {
        **_ENCODER_DECODER,
        "num_mel_bins": 8,
        "max_source_positions": 6,
        "max_target_positions": 40,
    },
}
"""The configuration of the tiny model of each `model_type`."""
MODEL_TYPES = tuple(CONFIGS)
VISION = ("vit", "clip_vision_model")
ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "whisper")
ENCODERS = (
    "bert",
    "roberta",
    "electra",
    "distilbert",
    "albert",
    "mpnet",
    "deberta-v2",
    "modernbert",
)
TOWERS = ("clip", "clip_text_model", "clip_vision_model")


def kind_of(model_type: str) -> str:
    """The usual kind of model of the family, in the words of `make_model`."""
    if model_type in TOWERS:
        return "bare"
    if model_type in (*ENCODERS, *VISION):
        return "classify"
    return "seq2seq" if model_type in ENCODER_DECODERS else "causal"


def generator(label: str) -> torch.Generator:
    """Random numbers that are the same each time for the same label."""
    return torch.Generator().manual_seed(SEED + zlib.crc32(label.encode()))


def _with_image_tokens(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """The text with an image in front: four places that Gemma 3 fills in."""
    kinds = torch.zeros_like(text["input_ids"])
    kinds[:, :4] = 1
    return {
        **text,
        "input_ids": text["input_ids"].masked_fill(kinds == 1, _IMAGE),
        "token_type_ids": kinds,
    }


@torch.no_grad()
def fill(module: nn.Module, label: str = "model", std: float = 0.3) -> None:
    """Random values everywhere; multipliers of norms are drawn around one."""
    draw = generator(label)
    for name, parameter in module.named_parameters():
        around = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
        mean = around if name.endswith("weight") else 0.0
        values = torch.randn(parameter.shape, generator=draw) * std + mean
        parameter.copy_(values)


def make_model(family: str, kind: str = "bare", **config: Any) -> Any:
    """A tiny model in eval mode.

    ``kind`` is "bare", "classify" (3 labels), "causal" or "seq2seq", as far as the family has it.
    """
    return _template(family, kind, tuple(config.items())).copy()


@functools.cache
def _template(family: str, kind: str, config: tuple[tuple[str, Any], ...]) -> Template:
    """Building takes longer than copying, so each kind of model is built once."""
    import transformers
    from transformers import AutoConfig

    head = {"vit": "Image", "clip": "Image", "whisper": "Audio"}.get(family, "Sequence")
    speech = "SpeechSeq2Seq" if family == "whisper" else "Seq2SeqLM"
    classes = {
        "bare": "AutoModel",
        "classify": f"AutoModelFor{head}Classification",
        "causal": "AutoModelForCausalLM",
        "seq2seq": f"AutoModelFor{speech}",
    }
    labels = {"num_labels": 3} if kind == "classify" else {}
    full = AutoConfig.for_model(family, **{**CONFIGS[family], **labels, **dict(config)})
    auto = getattr(transformers, classes[kind])
    model = auto.from_config(full, attn_implementation="eager")
    fill(model, f"{family}/{kind}")
    if (family, kind) == ("gemma3", "causal"):
        model.generation_config.suppress_tokens = [_IMAGE]  # it would need an image there
    return Template(model.eval())


def make_batch(rows: int = 3, length: int = 7, *, labels: bool = False) -> dict[str, Tensor]:
    """Token ids padded on the right, one row less each time."""
    draw = generator("batch")
    mask = torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows):
        mask[row, : length - row] = 1
    ids = torch.randint(5, 64, mask.shape, generator=draw).masked_fill(mask == 0, 0)
    batch = {"input_ids": ids, "attention_mask": mask}
    return {**batch, "labels": torch.arange(rows) % 3} if labels else batch


def make_inputs(family: str, kind: str = "bare", rows: int = 3) -> dict[str, Tensor]:
    """Inputs for `make_model` of the same words; text is padded on the right."""
    draw = generator("inputs")
    pixels = {"pixel_values": torch.randn(rows, 3, 8, 8, generator=draw)}
    if family in VISION or (family, kind) == ("clip", "classify"):
        return pixels
    text = make_batch(rows)
    if family == "clip":
        return {**text, **pixels}
    if family == "gemma3":
        return {**_with_image_tokens(text), **pixels}
    if family not in ENCODER_DECODERS:
        return text
    if family == "whisper":
        source = {"input_features": torch.randn(rows, 8, 12, generator=draw)}
    else:
        ends = text["attention_mask"].sum(1) - 1  # the classifiers pool at the end token
        source = {**text, "input_ids": text["input_ids"].scatter(1, ends[:, None], 2)}
    if kind == "classify":
        return source
    return {**source, "decoder_input_ids": torch.randint(5, 64, (rows, 4), generator=draw)}
