"""Active parameters: those that compute the change of one token."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import deltakit as dk


class TopTwo(dk.Delta, dk.SparselyActive):
    """A router over vectors, of which each token uses two."""

    def __init__(self, d: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(d, experts, bias=False)
        self.experts = nn.Parameter(torch.zeros(experts, d))

    def forward(self, x: Tensor) -> Tensor:
        scores, chosen = self.router(x).softmax(-1).topk(2)
        return (scores.unsqueeze(-1) * self.experts[chosen]).sum(-2)

    def active_parameters(self) -> int:
        return self.router.weight.numel() + 2 * self.experts.shape[1]


class Inside(dk.Delta):
    """A form around another."""

    def __init__(self, form: TopTwo) -> None:
        super().__init__()
        self.form = form
        self.shift = nn.Parameter(torch.zeros(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(x) + self.shift


@dataclass(frozen=True, kw_only=True)
class Experts(dk.Method):
    """A mixture at the end of each block."""

    inside: bool = False

    paper: ClassVar[Any] = dk.LoRA.paper
    learning_rate: ClassVar[float] = 1e-2

    def placements(self) -> tuple[dk.Placement, ...]:
        insertion = dk.Insertion.SEQUENTIAL
        return (dk.Placement(site=dk.Site.BLOCK_OUT, make_delta=self.form, insertion=insertion),)

    def form(self, handle: dk.Handle) -> dk.Delta:
        form = TopTwo(handle.d_out, 64)
        return Inside(form) if self.inside else form


def test_two_of_sixty_four(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, Experts())
    found = dk.summary(model)
    assert found.deployed_params == 2 * 2 * 64 * 16
    assert found.active_params == 2 * (64 * 16 + 2 * 16)
    assert str(found).endswith("active for one token 2,112")


def test_inside_another_form_and_beside_another_delta(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, Experts(inside=True), "a")
    dk.attach(model, dk.BitFit(), "b")
    dk.activate(model, dk.Stack("a", "b"))
    found = dk.summary(model)
    assert found.deployed_params - found.active_params == 2 * 62 * 16


def test_all_of_a_dense_delta(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.PrefixTuning(length=3, bottleneck=4))
    found = dk.summary(model)
    assert found.active_params == found.deployed_params < found.trained_params
    assert "active" not in str(found)
