"""The laws of training loops and of states find their faults: each is broken once, on purpose."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.core.method import CLASSES
from deltakit.inject import build, transfer
from deltakit.inject.attachments import BaseFlags
from deltakit.runtime import program
from deltakit.testing import loops, states
from deltakit.testing.case import Case
from deltakit.testing.checks import Law

SHARED: dict[str, Any] = {}
"""What the faulty forms share, though each pass and each delta should have its own."""


class Faulty(dk.Delta):
    """Adds W x, and does one thing wrong."""

    def __init__(self, d_in: int, d_out: int, fault: str, layer: int) -> None:
        super().__init__()
        self.fault, self.layer = fault, layer
        self.weight = nn.Parameter(torch.zeros(d_out, d_in))
        self.secret = torch.rand(())
        self.kept: Tensor | None = None
        if fault == "one of all":
            self.weight = SHARED.setdefault(f"{layer}", self.weight)

    def forward(self, x: Tensor) -> Tensor:
        match self.fault:
            case "hands over":
                if self.layer == 0:
                    SHARED["held"] = x.mean()
                return x @ self.weight.T + SHARED["held"] * self.weight.sum()
            case "draws":
                if self.layer == 0:
                    SHARED["drawn"] = torch.rand(()) if self.training else torch.ones(())
                return x @ self.weight.T * SHARED["drawn"]
            case "secret":
                return x @ self.weight.T * self.secret
            case "keeps":
                if self.kept is None:
                    self.kept = self.weight.detach().T.clone()
                return x @ (self.weight.T if self.training else self.kept)
            case "thaws":
                self.weight.requires_grad_(True)
        return x @ self.weight.T


@dataclass(frozen=True, kw_only=True)
class Wrong(dk.Method):
    """One linear change of the queries, with a fault."""

    fault: str = "none"
    paper: ClassVar[dk.Paper] = dk.LoRA.paper
    learning_rate: ClassVar[float] = 1e-3

    def placements(self) -> tuple[dk.Placement, ...]:
        site = dk.Site.ATTN_Q
        return (dk.Placement(site=site, make_delta=self.form, insertion=dk.Insertion.PARALLEL),)

    def form(self, handle: dk.Handle) -> dk.Delta:
        return Faulty(handle.d_in, handle.d_out, self.fault, handle.layer)


@pytest.fixture(autouse=True)
def _known() -> Iterator[None]:
    """Saved methods are found by their class; no short name is taken."""
    CLASSES.add("Wrong", Wrong)
    SHARED.clear()
    yield
    CLASSES.remove("Wrong")


@pytest.mark.parametrize("law", [*loops.LOOP_LAWS, *states.STATE_LAWS])
def test_a_right_one_passes_all(law: Law) -> None:
    law(Case.of(Wrong(), "bert"))


@pytest.mark.parametrize(
    ("law", "fault", "message"),
    [
        (loops.check_two_graphs, "draws", "two graphs, use_reentrant=False: the gradient of"),
        (loops.check_turns, "one of all", "in turns: .* of 'default': not bit-equal"),
        (loops.check_flags, "thaws", "disabled: flags are not as they were set"),
        (states.check_threads, "hands over", "in threads: a (batch|row): they differ by"),
        (states.check_state_dict, "secret", "from a state dict: 'default': not bit-equal"),
        (states.check_writes, "keeps", "after a write .*: not bit-equal"),
    ],
)
def test_each_law_finds_its_fault(law: Law, fault: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        law(Case.of(Wrong(fault=fault), "bert"))


def test_a_gradient_that_a_switch_drops_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    activate = dk.activate

    def freezing(model: Any, name: Any) -> None:
        activate(model, name)
        for key, parameter in model.deltakit.named_parameters():
            parameter.requires_grad_(key.startswith(f"delta_{name}."))

    monkeypatch.setattr(dk, "activate", freezing, raising=False)
    with pytest.raises(AssertionError, match="a joint loss: the gradient of .* of 'default'"):
        loops.check_joint_loss(Case.of(Wrong(), "bert"))


def test_parameters_in_the_dtype_of_the_base_are_found() -> None:
    class InHalf(Case):
        def attach(self, model: Any, *names: str, seed: int = 0) -> None:
            super().attach(model, *names, seed=seed)
            with torch.no_grad():
                for parameter in model.deltakit.parameters():
                    parameter.data = parameter.data.fill_(1.0).to(model.dtype)

    case = Case.of(Wrong(), "bert")
    wrong = InHalf(method=case.method, make=case.make, inputs=case.inputs)
    with pytest.raises(AssertionError, match="torch.bfloat16: .* of .* make no small step"):
        loops.check_half_precision(wrong)


def test_flags_from_a_record_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def change_to(self: BaseFlags, with_deltas: bool, parameters: dict[str, Any]) -> None:
        self.with_deltas = with_deltas
        for name, parameter in parameters.items():
            parameter.requires_grad_(not with_deltas and self.other.get(name, True))

    monkeypatch.setattr(BaseFlags, "change_to", change_to)
    with pytest.raises(AssertionError, match="disabled: flags are not as they were set"):
        loops.check_flags(Case.of(Wrong(), "bert"))


def test_a_graph_that_is_not_made_again_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_forget_graphs", lambda: None)
    with pytest.raises(AssertionError, match="compiled, then attached: they differ by"):
        states.check_compiled_first(Case.of(Wrong(), "bert"))


def test_a_fresh_value_that_is_frozen_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "fresh_names", lambda model: frozenset())
    with pytest.raises(AssertionError, match="no checkpoint holds them, and they are frozen"):
        states.check_fresh_values(Case.of(Wrong(), "bert"))


def test_labels_that_stay_behind_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "take_labels", lambda *_: None)
    with pytest.raises(AssertionError, match="deltakit: the classes of the head are"):
        states.check_labels(Case.of(Wrong(), "bert"))
