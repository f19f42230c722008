"""A method on a model: what each law is about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import deltakit as dk
from deltakit.core.data_start import take_as_started
from deltakit.core.method import CombiningMethod, Method
from deltakit.errors import DeltakitError, IncompatibleDeltas
from deltakit.inject.base_names import base_parameters
from deltakit.testing.copies import Template
from deltakit.testing.models import generator, kind_of, make_inputs, make_model
from deltakit.testing.probes import first, randomise_all, randomise_deltas, reseed

WITHIN = 1e-4
"""How far outputs may be apart that are the same but for rounding, in the size of the output."""


PAIR = ("default", "other")
"""The names of two deltas of one method on one model."""


class NotApplicable(Exception):  # noqa: N818
    """The reason why a law does not apply to a case."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Case:
    """A method on a model.

    Attributes:
        method: it is attached as "default". If it combines others, its `member` is attached under
            each of its names first.
        make: makes the plain model in eval mode, each time a new equal one.
        inputs: what the model is called with; where rows are padded, on the right.
    """

    method: Method
    make: Callable[[], Any]
    inputs: Mapping[str, Tensor]

    @classmethod
    def of(cls, method: Method, model_type: str) -> "Case":
        """The method on the tiny model of a family."""
        kind = kind_of(model_type)
        return cls(
            method=method,
            make=lambda: make_model(model_type, kind),
            inputs=make_inputs(model_type, kind),
        )

    def attach(self, model: Any, *names: str, seed: int = 0) -> None:
        """Attaches the members, if there are any, and the method. Raises as `deltakit.attach`.

        Args:
            model: a model without deltas.
            names: what to attach it as, more than once if there are several; "default" by default.
            seed: of the values that it begins with.
        """
        reseed(seed)
        if isinstance(self.method, CombiningMethod):
            for name in self.method.names:
                dk.attach(model, self.method.member, name)
        for name in names or ("default",):
            dk.attach(model, self.method, name)
            # The laws hold for any start, so for the one that was drawn too.
            take_as_started([model])

    def attached(self) -> Any:
        """The model with the method as it starts. Raises `NotApplicable` if it is refused."""
        if self._refusal is not None:
            raise NotApplicable(f"refused: {self._refusal}")
        model = self.make()
        self.attach(model)
        return model

    @cached_property
    def _refusal(self) -> str | None:
        """The reason why the model cannot have the method, as its first pass may say; or None."""
        model = self.make()
        try:
            self.attach(model)
        except DeltakitError as error:
            return str(error)
        try:
            run(model, self.inputs)
        except IncompatibleDeltas as error:
            return str(error)
        return None

    def random(self) -> Any:
        """The model with random values in all that the method trains, members too."""
        return self._template.copy()

    def pair(self) -> Any:
        """The model with the method twice, under the names of `PAIR`: all their values differ."""
        return self._pair.copy()

    @cached_property
    def base(self) -> Tensor:
        """The output of the plain model."""
        return run(self.make(), self.inputs)

    @cached_property
    def _random(self) -> Any:
        model = self.attached()
        randomise_deltas(model)
        draw = generator("own")
        with torch.no_grad():
            for parameter in base_parameters(model).values():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))
        return model

    @cached_property
    def _template(self) -> Template:
        return Template(self._random)

    @cached_property
    def _pair(self) -> Template:
        if self._refusal is not None:
            raise NotApplicable(f"refused: {self._refusal}")
        model = self.make()
        try:
            self.attach(model, *PAIR)
        except DeltakitError as error:
            raise NotApplicable(f"refused: {error}") from None
        randomise_all(model)
        return Template(model)

    def trains(self) -> None:
        """Raises `NotApplicable` if the method trains nothing here: no head, nothing else."""
        if not trained(self._random):
            raise NotApplicable("nothing is trained: this model has no task head")


@torch.no_grad()
def run(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The first tensor that the model returns."""
    return first(model(**inputs))


def gradients(model: Any, inputs: Mapping[str, Tensor], weight: float = 1.0) -> dict[str, Tensor]:
    """The gradients of `weight` times a loss that depends on all of the output, by name."""
    model.zero_grad(set_to_none=True)
    reseed(0)
    loss = loss_of(model, inputs)
    if loss.requires_grad:
        (weight * loss).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def loss_of(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """A loss that depends on all of the output, of shape ``()``."""
    output = first(model(**inputs)).float()
    return (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()


def trained(model: Any) -> dict[str, Tensor]:
    """The trained parameters, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def equal(found: Tensor, expected: Tensor, what: str) -> None:
    """Asserts that two tensors are the same, bit for bit."""
    assert found.shape == expected.shape, f"{what}: {found.shape} is not {expected.shape}"
    far = (found.float() - expected.float()).abs().max().item()
    assert torch.equal(found, expected), f"{what}: not bit-equal, they differ by up to {far:.3g}"


def distance(found: Tensor, expected: Tensor) -> float:
    """The largest difference, over the largest expected value or one, whichever is more."""
    if found.shape != expected.shape or not found.isfinite().all():
        return float("inf")
    scale = max(1.0, expected.abs().max().item())
    return (found.float() - expected.float()).abs().max().item() / scale


def close(found: Tensor, expected: Tensor, what: str, within: float = WITHIN) -> None:
    """Asserts that two tensors are the same up to rounding."""
    far = distance(found, expected)
    assert far <= within, f"{what}: they differ by {far:.3g}, more than {within:.3g}"
