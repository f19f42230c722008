"""Shared by all tests: one seed, two threads, no network, and tiny models with random values.

Every parameter of a tiny model is random, biases and norm weights too: zeros and ones hide bugs.
"""

import copy
import functools
import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.inject.bank import Bank, need_bank

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
        "image_token_id": 63,
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
FAMILIES = tuple(CONFIGS)
VISION = ("vit", "clip_vision_model")
ENCODER_DECODERS = ("t5", "mt5", "bart", "mbart", "whisper")


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds every generator; shown in the report of a failed test."""
    print(f"DELTAKIT_TEST_SEED={SEED}")
    random.seed(SEED)
    np.random.seed(SEED % 2**32)
    torch.manual_seed(SEED)
    return SEED


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(2)


def _generator(label: str) -> torch.Generator:
    return torch.Generator().manual_seed(SEED + zlib.crc32(label.encode()))


@torch.no_grad()
def _fill(module: nn.Module, label: str, std: float) -> None:
    """Random values everywhere; multipliers of norms are drawn around one."""
    draw = _generator(label)
    for name, parameter in module.named_parameters():
        around = 1.0 if "norm" in name.lower() or "ln_" in name else 0.0
        mean = around if name.endswith("weight") else 0.0
        values = torch.randn(parameter.shape, generator=draw) * std + mean
        parameter.copy_(values)


def make_model(family: str, kind: str = "bare", **config: Any) -> Any:
    """A tiny model in eval mode.

    ``kind`` is "bare", "classify" (3 labels), "causal" or "seq2seq", as far as the family has it.
    """
    return copy.deepcopy(_template(family, kind, tuple(config.items())))


@functools.cache
def _template(family: str, kind: str, config: tuple[tuple[str, Any], ...]) -> Any:
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
    _fill(model, f"{family}/{kind}", std=0.3)
    return model.eval()


def make_batch(rows: int = 3, length: int = 7, *, labels: bool = False) -> dict[str, Tensor]:
    """Token ids padded on the right, one row less each time."""
    draw = _generator("batch")
    mask = torch.zeros(rows, length, dtype=torch.int64)
    for row in range(rows):
        mask[row, : length - row] = 1
    ids = torch.randint(5, 64, mask.shape, generator=draw).masked_fill(mask == 0, 0)
    batch = {"input_ids": ids, "attention_mask": mask}
    return {**batch, "labels": torch.arange(rows) % 3} if labels else batch


def make_inputs(family: str, kind: str = "bare", rows: int = 3) -> dict[str, Tensor]:
    """What a model of the family is called with: text padded on the right, images or sound."""
    draw = _generator("inputs")
    pixels = {"pixel_values": torch.randn(rows, 3, 8, 8, generator=draw)}
    if family in VISION or (family, kind) == ("clip", "classify"):
        return pixels
    text = make_batch(rows)
    if family == "clip":
        return {**text, **pixels}
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


@torch.no_grad()
def randomise_deltas(model: Any, label: str = "deltas", std: float = 0.2) -> None:
    """Random values for the parameters of every attached delta (the head is left alone)."""
    draw = _generator(label)
    for attached in need_bank(model).attached.values():
        for _, tensor in attached.tensors():
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * std)


@torch.no_grad()
def out(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """The first tensor that the model returns."""
    return first(model(**batch))


def first(output: Any) -> Tensor:
    """Hidden states of a bare model (of CLIP: what tells texts and images apart), logits else."""
    if "logits" in output:
        return output.logits
    return output.logits_per_text if "logits_per_text" in output else output.last_hidden_state


def bank(model: Any) -> Bank:
    """The record of what is attached."""
    return need_bank(model)


def snapshot(model: Any) -> dict[str, Any]:
    """All that attaching must give back: values, order of keys, flags, hooks, modules, modes."""
    return {
        "state": {k: v.detach().clone() for k, v in model.state_dict().items()},
        "modules": [name for name, _ in model.named_modules()],
        "flags": {n: p.requires_grad for n, p in model.named_parameters()},
        "ids": {n: id(p) for n, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "training": {n: m.training for n, m in model.named_modules()},
        "hooks": hook_count(model),
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
    }


def hook_count(model: nn.Module) -> int:
    """How many hooks of any kind there are on the model's modules."""
    return sum(
        len(value)
        for module in model.modules()
        for name, value in vars(module).items()
        if "hooks" in name and isinstance(value, dict)
    )


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Two snapshots are equal, bit for bit and in order."""
    for key in ("modules", "flags", "ids", "training", "hooks", "attributes"):
        assert before[key] == after[key], key
    for key in ("state", "buffers"):
        assert list(before[key]) == list(after[key])
        for name, tensor in before[key].items():
            assert torch.equal(tensor, after[key][name]), name


def train_steps(model: Any, batch: dict[str, Tensor], steps: int = 3, lr: float = 0.05) -> None:
    """A few steps of SGD on what requires a gradient."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(parameters, lr=lr)
    for _ in range(steps):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()


def attach_fusion(model: Any, members: tuple[str, ...] = ("a", "b"), **fields: Any) -> None:
    """Two or more Pfeiffer adapters and their fusion, called "fused", all random."""
    for index, name in enumerate(members):
        dk.attach(model, dk.SequentialAdapter(bottleneck=index + 3), name=name)
    dk.attach(model, dk.AdapterFusion(*members, **fields), name="fused")
    randomise_deltas(model)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Each model type that there is a tiny model of, in turn."""
    return request.param


@pytest.fixture
def kit() -> SimpleNamespace:
    """The helpers above: test modules are imported by path, so they take them from here."""
    helpers: tuple[Callable[..., Any], ...] = (
        make_model,
        make_batch,
        make_inputs,
        randomise_deltas,
        out,
        first,
        bank,
        snapshot,
        hook_count,
        assert_same,
        train_steps,
        attach_fusion,
    )
    return SimpleNamespace(**{helper.__name__: helper for helper in helpers})


class Golden:
    """What the library ``adapters`` computed for one base (see tests/golden)."""

    _MODULES = {  # noqa: RUF012
        "attention.self.query": "attn.q",
        "attention.self.key": "attn.k",
        "attention.self.value": "attn.v",
        "attention.output": "attn.out",
        "intermediate.dense": "ffn.up",
        "output.dense": "ffn.down",
    }
    _NAMES = (("adapter_down.0.", "down."), ("adapter_up.", "up."))

    def __init__(self, base: str) -> None:
        from safetensors.torch import load_file

        folder = Path(__file__).parent / "golden"
        self.base = base
        self.tensors = load_file(folder / f"adapters_{base}.safetensors")
        self.description = json.loads((folder / "adapters_golden.json").read_text())
        self.batch = {key: self.tensors[key] for key in ("input_ids", "attention_mask")}

    def model(self) -> Any:
        """The plain model, with the golden weights."""
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(self.base, **self.description["bases"][self.base])
        model = AutoModel.from_config(config, attn_implementation="eager")
        model.load_state_dict(self._part("base."))
        return model.eval()

    def fill(self, model: Any, case: str, *, ffn: str) -> None:
        """Copies the case's tensors into the attached deltas; each must be used exactly once.

        Args:
            model: has deltas of the names that the case has, and "fused" for its fusion.
            case: a case of the golden file.
            ffn: our site for what ``adapters`` puts at the FFN's output.
        """
        ours = {
            (name, key): tensor
            for name, attached in need_bank(model).attached.items()
            for key, tensor in attached.tensors()
        }
        theirs = {self._ours(k, ffn): t for k, t in self._part(f"{case}.state.").items()}
        assert ours.keys() == theirs.keys()
        with torch.no_grad():
            for key, tensor in theirs.items():
                ours[key].copy_(tensor)

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    def _ours(self, key: str, ffn: str) -> tuple[str, str]:
        kind = next(k for k in ("adapters", "loras", "adapter_fusion_layer") if f".{k}." in key)
        where, what = key.split(f".{kind}.")
        layer, _, module = where.removeprefix("encoder.layer.").partition(".")
        name, _, tensor = what.partition(".")
        for theirs, mine in self._NAMES:
            tensor = tensor.replace(theirs, mine)
        site = {**self._MODULES, "output": ffn}[module]
        name = "fused" if kind == "adapter_fusion_layer" else name
        return name, f"encoder.{layer}.{site}.{tensor}"


@pytest.fixture(params=["bert", "roberta"])
def golden(request: pytest.FixtureRequest) -> Golden:
    """Golden values, for each base in turn."""
    return Golden(request.param)
