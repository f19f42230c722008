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
}
ENCODERS = ("bert", "roberta", "electra", "distilbert")
DECODERS = ("gpt2", "llama", "mistral", "qwen2", "qwen3")
FAMILIES = (*ENCODERS, *DECODERS)


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
    """A tiny model in eval mode: ``kind`` is "bare", "classify" (3 labels) or "causal"."""
    return copy.deepcopy(_template(family, kind, tuple(config.items())))


@functools.cache
def _template(family: str, kind: str, config: tuple[tuple[str, Any], ...]) -> Any:
    """Building takes longer than copying, so each kind of model is built once."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
    )

    classes = {
        "bare": AutoModel,
        "classify": AutoModelForSequenceClassification,
        "causal": AutoModelForCausalLM,
    }
    labels = {"num_labels": 3} if kind == "classify" else {}
    full = AutoConfig.for_model(family, **{**CONFIGS[family], **labels, **dict(config)})
    model = classes[kind].from_config(full, attn_implementation="eager")
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
    """Hidden states of a bare model, logits of one with a head."""
    return output.logits if "logits" in output else output.last_hidden_state


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


@pytest.fixture
def kit() -> SimpleNamespace:
    """The helpers above: test modules are imported by path, so they take them from here."""
    helpers: tuple[Callable[..., Any], ...] = (
        make_model,
        make_batch,
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
