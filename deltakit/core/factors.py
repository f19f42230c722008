"""Forms that end in a linear map of few units, and several of them side by side.

    f(x) = z Uᵀ + c,    z = a(x Dᵀ + b)

z is the form's *code*, U its up-projection. A part that combines many forms can do so by their
codes: their products are stacked into one, and no f(x) of the model's width is made.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def identity(units: Tensor) -> Tensor:
    """The activation of a form without a nonlinearity."""
    return units


class Factors(NamedTuple):
    """The parts of a form f(x) = a(x Dᵀ + b) Uᵀ + c.

    `down` is D, ``(units, d_in)``, and `up` is U, ``(d_out, units)``. A bias may be None.
    `activation` is a, which acts on each unit alone.
    """

    down: Tensor
    down_bias: Tensor | None
    activation: Callable[[Tensor], Tensor]
    up: Tensor
    up_bias: Tensor | None

    def scaled(self, scale: float | Tensor) -> "Factors":
        """The factors of ``scale · f``."""
        bias = None if self.up_bias is None else scale * self.up_bias
        return self._replace(up=scale * self.up, up_bias=bias)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes of its tensors."""
        return {t.dtype for t in self if isinstance(t, Tensor)}


class Factored(ABC):
    """A form that can give its factors.

    A subclass that defines `forward` alone does not use it.
    """

    @abstractmethod
    def factors(self) -> Factors | None:
        """The factors that compute its change now; None where dropout acts on it."""


@dataclass(frozen=True, kw_only=True)
class UnitLayout:
    """The units of n forms in one row, w in all.

    Attributes:
        widths: how many units each form has.
        activations: each form's activation.
    """

    widths: tuple[int, ...]
    activations: tuple[Callable[[Tensor], Tensor], ...]

    def activated(self, units: Tensor) -> Tensor:
        """The codes ``(..., w)`` from what the first projections give."""
        if len(set(self.activations)) == 1:
            return self.activations[0](units)
        pairs = zip(self.activations, units.split(self.widths, dim=-1), strict=True)
        return torch.cat([activation(piece) for activation, piece in pairs], dim=-1)

    def scores(self, code: Tensor, matched: Tensor) -> Tensor:
        """v · f_n(x) for each form, ``(..., n)``.

        Args:
            code: the codes of x, ``(..., w)``.
            matched: v times the stacked `up`, ``(..., w + n)``.
        """
        units, biases = matched.split((code.shape[-1], len(self.widths)), dim=-1)
        products = code * units
        if self._are_equal:
            return products.unflatten(-1, (len(self.widths), -1)).sum(-1) + biases
        sums = [piece.sum(-1) for piece in products.split(self.widths, dim=-1)]
        return torch.stack(sums, dim=-1) + biases

    def weighed(self, code: Tensor, weights: Tensor) -> Tensor:
        """``(..., w + n)``: times the stacked `up` it is the sum of ``weights`` times the forms.

        Args:
            code: the codes, ``(..., w)``.
            weights: one for each form, ``(..., n)``.
        """
        if self._are_equal:
            forms = code.unflatten(-1, (len(self.widths), -1))
            return torch.cat([(forms * weights.unsqueeze(-1)).flatten(-2), weights], dim=-1)
        pieces = zip(code.split(self.widths, dim=-1), weights.split(1, dim=-1), strict=True)
        return torch.cat([*(piece * weight for piece, weight in pieces), weights], dim=-1)

    @property
    def _are_equal(self) -> bool:
        return len(set(self.widths)) == 1


@dataclass(frozen=True, kw_only=True, eq=False)
class StackedFactors:
    """The factors of n forms side by side, as one form of w units.

    Attributes:
        down: ``(w, d_in)``.
        down_bias: ``(w,)``; None where no form has one.
        up: ``(d_out, w + n)``: the up-projections, then the biases c, a column for each form.
        layout: which units are whose.
    """

    down: Tensor
    down_bias: Tensor | None
    up: Tensor
    layout: UnitLayout

    @property
    def sizes(self) -> tuple[int, int]:
        """w and n, into which the columns of `up` are split."""
        return len(self.down), len(self.layout.widths)

    def code(self, x: Tensor) -> Tensor:
        """The codes of x ``(..., d_in)``, ``(..., w)``: one product for all forms."""
        return self.layout.activated(F.linear(x, self.down, self.down_bias))


def stack_factors(parts: Sequence[Factors]) -> StackedFactors:
    """The forms side by side."""
    inner = [_or_zeros(part.down_bias, part.down) for part in parts]
    biases = [_or_zeros(part.up_bias, part.up).unsqueeze(1) for part in parts]
    without = all(part.down_bias is None for part in parts)
    return StackedFactors(
        down=torch.cat([part.down for part in parts]),
        down_bias=None if without else torch.cat(inner),
        up=torch.cat([*(part.up for part in parts), *biases], dim=1),
        layout=UnitLayout(
            widths=tuple(len(part.down) for part in parts),
            activations=tuple(part.activation for part in parts),
        ),
    )


def _or_zeros(bias: Tensor | None, weight: Tensor) -> Tensor:
    return weight.new_zeros(len(weight)) if bias is None else bias


class CombinesFactors(ABC):
    """A combiner to which the members' codes are enough.

    A subclass that defines `forward` alone does not use it.
    """

    @abstractmethod
    def combined(self, query: Tensor, code: Tensor, stacked: StackedFactors) -> Tensor:
        """The output of `forward` for members with these factors.

        Args:
            query: ``(..., d)``.
            code: the members' codes, ``(..., w)``.
            stacked: the members' factors.
        """


class Foldable(ABC):
    """A combiner whose matrices can be multiplied with its members' for inference."""

    @abstractmethod
    def folded(self, stacked: StackedFactors) -> nn.Module:
        """A module with tensors of its own, in buffers that no state dict has.

        Called with the query ``(..., d)`` and the members' input ``(..., d_in)``, which may be one
        tensor, it returns what `forward` returns for the members with dropout off.
        """
