"""Shared by all tests: one seed, one thread, no network, and the models of `deltakit.testing`."""

import json
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import gc
import importlib
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.inject.attachments import Attachments, need_attachments
from deltakit.testing.models import MODEL_TYPES, SEED, make_batch, make_inputs, make_model
from deltakit.testing.probes import (
    assert_same,
    first,
    hook_count,
    out,
    randomise_deltas,
    reseed,
    snapshot,
)

pytest_plugins = ["comparison"]

# The same examples each time, however long one takes.
hypothesis.settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis.settings.load_profile("tests")


LIBRARIES = (
    "bitsandbytes",
    "datasets",
    "matplotlib.figure",
    "peft",
    "scipy.stats",
    "sklearn.metrics",
    "torch._dynamo",
    "transformers.trainer",
)
"""Libraries with many objects, which every search for garbage would go through."""


ROOMS_WITH_LONG_FILES = ("testing", "compare")
"""Folders of tests that begin first, so that no process is left alone with a long file."""


def pytest_configure(config: pytest.Config) -> None:
    """Keeps the order below: the plugin for several processes would begin with many tests."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first; the order is otherwise that of the folders."""
    tests = Path(__file__).parent
    first = [tests / room for room in ROOMS_WITH_LONG_FILES]
    items.sort(key=lambda item: not any(item.path.is_relative_to(room) for room in first))


def pytest_collection_finish() -> None:
    """Leaves what lives as long as the session, the tests and the libraries, to no later search.

    A search through all objects for garbage takes a third of a second. The models of the tests are
    garbage in cycles, so it is still made, but less often.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:  # a whole run imports them in any case
        for name in LIBRARIES:
            if importlib.util.find_spec(name) is not None:
                importlib.import_module(name)
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds every generator; shown in the report of a failed test."""
    print(f"DELTAKIT_TEST_SEED={SEED}")
    random.seed(SEED)
    np.random.seed(SEED % 2**32)
    reseed(SEED)
    return SEED


@pytest.fixture(autouse=True, scope="session")
def _threads() -> None:
    torch.set_num_threads(1)


def attachments(model: Any) -> Attachments:
    """The record of what is attached."""
    return need_attachments(model)


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


@pytest.fixture(params=MODEL_TYPES)
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
        attachments,
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
    _TRUNK = {  # noqa: RUF012
        "wte.weight": "embedding",
        "control_trans.0.weight": "down.weight",
        "control_trans.0.bias": "down.bias",
    }

    def __init__(self, base: str) -> None:
        from safetensors.torch import load_file

        folder = Path(__file__).parent / "golden"
        self.base = base
        self.tensors = load_file(folder / f"adapters_{base}.safetensors")
        self.description = json.loads((folder / "adapters_golden.json").read_text())
        self.batch = {key: self.tensors[key] for key in ("input_ids", "attention_mask")}

    def model(self, attention: str = "eager") -> Any:
        """The plain model, with the golden weights."""
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(self.base, **self.description["bases"][self.base])
        model = AutoModel.from_config(config, attn_implementation=attention)
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
            for name, attached in need_attachments(model).attached.items()
            for key, tensor in attached.tensors()
        }
        theirs = {
            key: tensor
            for name, whole in self._part(f"{case}.state.").items()
            for key, tensor in self._ours(name, whole, ffn)
        }
        assert ours.keys() == theirs.keys()
        with torch.no_grad():
            for key, tensor in theirs.items():
                ours[key].copy_(tensor)

    def _part(self, prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): t for k, t in self.tensors.items() if k.startswith(prefix)}

    def _ours(self, key: str, whole: Tensor, ffn: str) -> Iterator[tuple[tuple[str, str], Tensor]]:
        """Our tensors that one of theirs holds: one, or those of all layers in a prefix."""
        start = "prefix_tuning.prefix_tunings."
        if not key.startswith(start):
            yield self._key(key, ffn), whole
            return
        name, _, part = key.removeprefix(start).partition(".self_prefix.")
        if part in self._TRUNK:
            yield (name, f"encoder.0.attn.kv.trunk.{self._TRUNK[part]}"), whole
            return
        layers = self.description["bases"][self.base]["num_hidden_layers"]
        if part == "control_trans":  # flat: position by position, key and value of each layer
            length = self.description["cases"]["prefix_tuning_flat"]["adapters"]["a"][
                "prefix_length"
            ]
            whole = whole.view(length, layers, 2, -1).permute(1, 2, 0, 3)
            part = "memory"
        else:
            whole = whole.unflatten(0, (layers, -1))
            part = part.replace("control_trans.2", "up")
        for layer, tensor in enumerate(whole):
            yield (name, f"encoder.{layer}.attn.kv.{part}"), tensor

    def _key(self, key: str, ffn: str) -> tuple[str, str]:
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


@pytest.fixture
def forgets_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What users' files register is forgotten at the end of the test."""
    from deltakit import _imports
    from deltakit.compare.stats.metrics import METRICS
    from deltakit.compare.tasks import TASKS
    from deltakit.compare.tasks.kinds import KINDS
    from deltakit.core.method import CLASSES, METHODS

    importlib.import_module("deltakit.methods")
    importlib.import_module("deltakit.interop")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(_imports, "_LOADED", {})
    for registry in (METHODS, CLASSES, METRICS, KINDS, TASKS):
        monkeypatch.setattr(registry, "_things", dict(registry._things))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith(("deltakit_import_", "users_")):
            del sys.modules[name]
