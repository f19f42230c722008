"""The laws find what they are there to find: each is broken once, by a method made for it."""

import importlib.util
import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.core.method import CLASSES, METHODS, InitialOutput
from deltakit.testing import checks
from deltakit.testing.case import Case, NotApplicable
from deltakit.testing.fresh import check_loads_elsewhere
from deltakit.testing.models import make_model


class Faulty(dk.Delta, dk.Mergeable):
    """Adds W x, and does one thing wrong."""

    def __init__(self, d_in: int, d_out: int, fault: str, base: nn.Module) -> None:
        super().__init__()
        self.fault = fault
        self.base = (base,)
        self.weight = nn.Parameter(torch.zeros(d_out, d_in))
        self.unused = nn.Parameter(torch.zeros(1)) if fault == "unused" else None
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        if fault in ("start", "near"):
            nn.init.constant_(self.weight, {"start": 1e-4, "near": 10.0}[fault])

    def forward(self, x: Tensor) -> Tensor:
        change = x @ self.weight.T
        match self.fault:
            case "silent":
                return change * 0
            case "infinite":
                return change / 0
            case "mixes":
                return change + change.mean(dim=1, keepdim=True)
            case "counts":
                self.seen += 1
                return change * self.seen
            case "writes":
                next(self.base[0].parameters()).data.add_(1e-3)
            case "breaks":
                torch._dynamo.graph_break()
        return change

    def weight_change(self) -> Tensor:
        return -self.weight if self.fault == "merges" else self.weight


@dataclass(frozen=True, kw_only=True)
class Wrong(dk.Method):
    """One linear change of the queries, with a fault."""

    fault: str = "none"
    paper: ClassVar[dk.Paper] = dk.LoRA.paper
    learning_rate: ClassVar[float] = 1e-3

    @property
    def starts(self) -> InitialOutput:  # type: ignore[override]
        return InitialOutput.NEAR if self.fault == "near" else InitialOutput.IDENTITY

    def placements(self) -> tuple[dk.Placement, ...]:
        site = dk.Site.ATTN_Q
        return (dk.Placement(site=site, make_delta=self.form, insertion=dk.Insertion.PARALLEL),)

    def form(self, handle: dk.Handle) -> dk.Delta:
        return Faulty(handle.d_in, handle.d_out, self.fault, handle.module)


@pytest.fixture(autouse=True)
def _known() -> Any:
    """Saved methods are found by their class; no short name is taken."""
    CLASSES.add("Wrong", Wrong)
    yield
    CLASSES.remove("Wrong")


NOT_FOR_IT = (
    "it is not refused",
    "it does not generate",
    "none of its forms has a loss that depends on the data",
)


OWN_LAWS = [law for law in checks.LAWS if law.__module__ == checks.__name__]
SLOW = [(checks.check_compiles, "llama")]
"""A law that takes seconds, and is held on another family."""


@pytest.mark.parametrize(
    ("law", "model_type"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] * (pair in SLOW))
        for pair in itertools.product(OWN_LAWS, ("bert", "llama"))
    ],
)
def test_a_right_one_passes_all(law: checks.Law, model_type: str) -> None:
    try:
        law(Case.of(Wrong(), model_type))
    except NotApplicable as reason:
        assert str(reason) in NOT_FOR_IT


@pytest.mark.parametrize(
    ("law", "fault", "message"),
    [
        (checks.check_start, "start", "starts at the identity, the output does not: not bit-equal"),
        (checks.check_start, "near", "starts near the identity: they differ by"),
        (checks.check_acts, "silent", "random deltas change the output by no more than 0"),
        (checks.check_acts, "infinite", "the output is not finite"),
        (checks.check_gradients, "unused", "some deltas in decoder received no gradient"),
        (checks.check_base_untouched, "writes", "training changed .*weight, which is frozen"),
        (checks.check_disabled, "writes", "disabled: not bit-equal"),
        (checks.check_disabled, "counts", "enabled again: not bit-equal"),
        (checks.check_merge, "merges", "merged: they differ by"),
        (checks.check_padding, "mixes", "a row padded on the left: they differ by"),
        (checks.check_attention_implementations, "counts", "SDPA: they differ by"),
        (checks.check_generation, "mixes", "generation with a cache: they differ by"),
        (checks.check_resumed, "counts", "resumed: .* not bit-equal"),
        (checks.check_checkpointing, "counts", "use_reentrant=False: the gradient of .* differ by"),
        (checks.check_compiles, "breaks", "torch.compile makes no single graph"),
    ],
)
def test_each_law_finds_its_fault(law: checks.Law, fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        law(Case.of(Wrong(fault=fault), "llama"))


def test_gradients_that_flow_too_low_are_found() -> None:
    def make() -> Any:
        model = make_model("bert", "classify")
        model.enable_input_require_grads()
        return model

    right = Case.of(dk.parse_method("houlsby[bottleneck=3]"), "bert")
    checks.check_dropped_layers(right)
    with pytest.raises(AssertionError, match="gradients down to 0, deltas to 1"):
        checks.check_dropped_layers(Case(method=right.method, make=make, inputs=right.inputs))


def test_an_upcast_is_found() -> None:
    def make() -> Any:
        model = make_model("bert", "classify")

        def upcast(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            return output.float() if "deltakit" in dict(model.named_children()) else None

        model.classifier.register_forward_hook(upcast)
        return model

    case = Case.of(dk.LoRA(), "bert")
    with pytest.raises(AssertionError, match="other dtypes than the plain model's: .*classifier"):
        checks.check_bf16(Case(method=case.method, make=make, inputs=case.inputs))


FORGETFUL = """
import torch
import deltakit as dk
from deltakit.methods.forms.lora import LowRank
from deltakit.methods.lora import LoRA

class Forgetful(LowRank):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.secret = torch.rand(())

    def forward(self, x):
        return super().forward(x) * self.secret

@dk.register_method("forgetful")
class ForgetfulLoRA(LoRA):
    def form(self, handle):
        return Forgetful(handle.d_in, handle.d_out, rank=2)
"""


@pytest.mark.slow  # a process that imports torch
def test_a_value_that_is_not_saved_is_found_in_a_fresh_process(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(FORGETFUL, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("nowhere.forgetful", file)
    assert spec is not None and spec.loader is not None
    module = sys.modules["nowhere.forgetful"] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        right, wrong = (Case.of(m, "bert") for m in (dk.LoRA(), module.ForgetfulLoRA()))
        with pytest.raises(AssertionError, match="ForgetfulLoRA.* in a fresh process: not bit-eq"):
            check_loads_elsewhere([right, wrong])
    finally:
        METHODS.remove("forgetful")
        CLASSES.remove("ForgetfulLoRA")
        del sys.modules["nowhere.forgetful"]
