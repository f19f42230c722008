"""The couplings of invertible adapters, and what undoes them."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from deltakit.core.delta import Delta, Inverse
from deltakit.errors import InvalidConfig
from deltakit.methods.forms.adapter import ACTIVATIONS

CLAMP = 5.0
"""The largest logarithm of a factor in GLOW, nearly."""


class Subnet(nn.Module):
    """A bottleneck ``(..., d_in)`` to ``(..., d_out)``."""

    def __init__(self, d_in: int, d_out: int, *, width: int, activation: str) -> None:
        super().__init__()
        self.down = nn.Linear(d_in, width)
        self.up = nn.Linear(width, d_out)
        self.activation = ACTIVATIONS[activation]
        for layer in (self.down, self.up):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.activation(self.down(x)))


class Coupling(Delta, ABC):
    """A(e) - e, ``(..., d)``, for an invertible A whose halves change one after the other.

    Attributes:
        first: the bottleneck that reads the second half, and changes the first.
        second: the one that reads the new first half, and changes the second.
    """

    outputs: ClassVar[int]
    """How many vectors a bottleneck makes for each half."""

    def __init__(self, d: int, *, reduction: float, activation: str) -> None:
        super().__init__()
        self.cut = d // 2
        one, two = self.cut, d - self.cut
        self.first = self._subnet(two, one, reduction, activation)
        self.second = self._subnet(one, two, reduction, activation)

    def _subnet(self, d_in: int, d_out: int, reduction: float, activation: str) -> Subnet:
        width = int(d_in // reduction)
        if width < 1:
            raise InvalidConfig(
                f"reduction={reduction} leaves no bottleneck in half a vector of {d_in}. Take a "
                f"reduction of at most {d_in}."
            )
        return Subnet(d_in, self.outputs * d_out, width=width, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        return self.transformed(x) - x

    def transformed(self, x: Tensor) -> Tensor:
        """A(x)."""
        one, two = x[..., : self.cut], x[..., self.cut :]
        one = self.changed(one, self.first(two))
        return torch.cat([one, self.changed(two, self.second(one))], dim=-1)

    def inverse(self, y: Tensor) -> Tensor:
        """A⁻¹(y)."""
        one, two = y[..., : self.cut], y[..., self.cut :]
        two = self.restored(two, self.second(one))
        return torch.cat([self.restored(one, self.first(two)), two], dim=-1)

    @abstractmethod
    def changed(self, half: Tensor, by: Tensor) -> Tensor:
        """A half, changed by what a bottleneck made of the other one."""

    @abstractmethod
    def restored(self, half: Tensor, by: Tensor) -> Tensor:
        """The inverse of `changed`."""


class NICE(Coupling):
    """The coupling that adds what its bottlenecks make."""

    outputs = 1

    def changed(self, half: Tensor, by: Tensor) -> Tensor:
        return half + by

    def restored(self, half: Tensor, by: Tensor) -> Tensor:
        return half - by


class GLOW(Coupling):
    """The coupling that scales the halves too, by factors whose logarithms its bottlenecks make."""

    outputs = 2

    def changed(self, half: Tensor, by: Tensor) -> Tensor:
        scale, shift = by.chunk(2, dim=-1)
        return _factor(scale) * half + shift

    def restored(self, half: Tensor, by: Tensor) -> Tensor:
        scale, shift = by.chunk(2, dim=-1)
        return (half - shift) / _factor(scale)


def _factor(s: Tensor) -> Tensor:
    return torch.exp(CLAMP * 0.636 * torch.atan(s / CLAMP))


class Uncoupling(Delta, Inverse):
    """A⁻¹(h) - h, ``(..., d)``, of a coupling that another site has; it has no parameters."""

    def __init__(self, coupling: Coupling) -> None:
        super().__init__()
        self.shared = (coupling,)  # in a tuple, so that its parameters are counted once

    def forward(self, h: Tensor) -> Tensor:
        (coupling,) = self.shared
        y = h.to(coupling.first.down.weight)
        return (coupling.inverse(y) - y).to(h.device)


BLOCKS: dict[str, type[Coupling]] = {"nice": NICE, "glow": GLOW}
