"""The laws of wrappers find their faults: each is broken once, by a wrapper made for it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from torch import Tensor

import deltakit as dk
from deltakit.core.delta import Delta
from deltakit.core.method import FormWrapper, Placement
from deltakit.core.site import Handle
from deltakit.methods.forms.mixture import Routed
from deltakit.methods.mixture import Mixture
from deltakit.testing import wrappers
from deltakit.testing.case import Case, NotApplicable
from deltakit.testing.checks import Law


class Doubled(Routed):
    """Experts whose weights have a sum of two."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(x, 2 * self.attention(self.router(x)))


@dataclass(frozen=True, kw_only=True, init=False)
class TwiceTheWeights(Mixture):
    """A mixture whose weights have a sum of two."""

    def form(self, placement: Placement, handle: Handle) -> Delta:
        made = super().form(placement, handle)
        assert isinstance(made, Routed)
        return Doubled(made.experts, made.router.in_features, top=None)


@dataclass(frozen=True, kw_only=True)
class NeverPlain(FormWrapper):
    """A wrapper that says it is the method itself where it halves the rank."""

    method: dk.Method
    halve: bool = True
    paper: ClassVar[dk.Paper] = dk.LoRA.paper
    plain: ClassVar[Mapping[str, Any]] = {"halve": False}

    def form(self, placement: Placement, handle: Handle) -> Delta:
        return dk.LoRA(rank=1).placements()[0].make_delta(handle)


class Forgotten(dk.Delta, dk.Reparametrised):
    """A change that is deployed as none."""

    def __init__(self, form: Delta) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> Tensor:
        changed: Tensor = self.form(x)
        return changed

    def deployed(self) -> Delta:
        made = type(self)(self.form)
        made.forward = lambda x: 0 * self.form(x)  # type: ignore[method-assign]
        return made


@dataclass(frozen=True, kw_only=True)
class LostWhenDeployed(FormWrapper):
    """A wrapper of which nothing is left when it is deployed."""

    method: dk.Method
    paper: ClassVar[dk.Paper] = dk.LoRA.paper

    def form(self, placement: Placement, handle: Handle) -> Delta:
        return Forgotten(placement.make_delta(handle))

    def deployed(self) -> dk.Method:
        return self.method


LORA = dk.LoRA(rank=2)


@pytest.mark.parametrize(
    ("law", "method", "message"),
    [
        (wrappers.check_plain, NeverPlain(method=LORA), "NeverPlain with halve=False is not"),
        (wrappers.check_equal_experts, TwiceTheWeights(LORA, experts=2), "are not one of them"),
        (wrappers.check_deployed, LostWhenDeployed(method=LORA), "deployed: they differ"),
    ],
)
def test_each_law_finds_its_fault(law: Law, method: dk.Method, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        law(Case.of(method, "bert"))


@pytest.mark.parametrize(
    ("law", "spec", "reason"),
    [
        (wrappers.check_plain, "lora", "it wraps no method"),
        (wrappers.check_plain, "gated[method=lora]", "no settings"),
        (wrappers.check_equal_experts, "sparse[method=lora]", "no experts"),
        (wrappers.check_deployed, "lora", "nothing that only training needs"),
    ],
)
def test_what_a_law_says_nothing_about(law: Law, spec: str, reason: str) -> None:
    with pytest.raises(NotApplicable, match=reason):
        law(Case.of(dk.parse_method(spec), "bert"))


@pytest.mark.parametrize(
    ("law", "spec"),
    [
        (wrappers.check_plain, "mola[experts=1/3,top=1,method=lora[rank=2]]"),
        (wrappers.check_plain, "adamix[method=pfeiffer[bottleneck=3,placement=ffn]]"),
        (wrappers.check_plain, "sparse[method=pfeiffer[bottleneck=3]]"),
        (wrappers.check_equal_experts, "mola[experts=1/3,top=1,method=lora[rank=2]]"),
        (wrappers.check_equal_experts, "adamix[method=pfeiffer[bottleneck=3,placement=ffn]]"),
        (wrappers.check_deployed, "adamix[method=pfeiffer[bottleneck=3,placement=ffn]]"),
    ],
)
def test_it_holds(law: Law, spec: str) -> None:
    law(Case.of(dk.parse_method(spec), "bert"))
