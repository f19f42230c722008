r"""Invertible adapters of the embeddings (MAD-X, Pfeiffer et al. 2020, arXiv:2005.00052).

    e <- A(e) behind the embeddings,    h <- A⁻¹(h) before the projection to the vocabulary

=================  ===============================================
axis               value
=================  ===============================================
functional form    a coupling of two halves, which has an exact inverse
insertion          sequential
modified           what the first layer is given; what a language-modelling head projects
composition        e + (A(e) - e),  h + (A⁻¹(h) - h)
=================  ===============================================

Each vector is cut into halves e₁ and e₂. NICE (Dinh et al. 2015) adds, GLOW (Kingma & Dhariwal
2018) scales too; F, G, S and T are bottlenecks of two linear layers:

    nice   e₁' = e₁ + F(e₂)                   e₂' = e₂ + G(e₁')
    glow   e₁' = exp(c(S₂(e₂))) e₁ + T₂(e₂)   e₂' = exp(c(S₁(e₁'))) e₂ + T₁(e₁')

with c(s) = 5 · 0.636 atan(s / 5), so that no factor is beyond exp(±5). Both directions have one set
of parameters. A model without a language-modelling head has the first direction alone, so a
language's adapter trained with one can go under a classifier. A MAD-X language adapter is
``invertible + adapter``; with a task's adapter on top, ``Stack("language", "task")`` runs through
the language's inverse.

Where the sources differ. The paper uses NICE, and leaves the width of the bottleneck open; the
`adapters` library halves it (``reduction=2``). The library's GLOW slices the tokens' axis where it
means the vectors', and fails on every batch; this is what its design says. The library has the
inverse in its own heads alone; here it is in transformers' heads.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from deltakit.core.checks import check_choice, check_positive
from deltakit.core.delta import Delta, Inverse
from deltakit.core.method import InitialOutput, Paper, Placement, Summable, register_method
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import ACTIVATIONS

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


_BLOCKS: dict[str, type[Coupling]] = {"nice": NICE, "glow": GLOW}


@register_method("invertible")
@dataclass(frozen=True, kw_only=True)
class InvertibleAdapter(Summable):
    """An invertible change of the embeddings, undone before the vocabulary (Pfeiffer et al. 2020).

    Args:
        block: "nice" adds to the halves of a vector; "glow" also scales them.
        reduction: the width of half a vector over that of its bottleneck.
        activation: the nonlinearity of the bottlenecks.

    Raises:
        InvalidConfig: a value out of range.
    """

    block: Literal["nice", "glow"] = "nice"
    reduction: float = 2
    activation: str = "relu"

    paper: ClassVar[Paper] = Paper(
        key="pfeiffer2020madx",
        title="MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer",
        authors="Pfeiffer, Jonas and Vulić, Ivan and Gurevych, Iryna and Ruder, Sebastian",
        year=2020,
        venue="Conference on Empirical Methods in Natural Language Processing",
        arxiv="2005.00052",
    )
    learning_rate: ClassVar[float] = 1e-4
    starts: ClassVar[InitialOutput] = InitialOutput.NEAR

    def __post_init__(self) -> None:
        check_choice(self, tuple(_BLOCKS), block=self.block)
        check_positive(self, reduction=self.reduction)
        check_choice(self, tuple(ACTIVATIONS), activation=self.activation)

    def placements(self) -> tuple[Placement, ...]:
        pair = _Pair(self)
        return (
            Placement(site=Site.EMBED_OUT, make_delta=pair.form, insertion=Insertion.SEQUENTIAL),
            Placement(
                site=Site.UNEMBED,
                make_delta=pair.inverse,
                insertion=Insertion.SEQUENTIAL,
                optional=True,
            ),
        )


@dataclass
class _Pair:
    """Makes the two directions; the first one has the parameters."""

    method: InvertibleAdapter
    coupling: Coupling | None = None

    def form(self, handle: Handle) -> Delta:
        method = self.method
        self.coupling = _BLOCKS[method.block](
            handle.d_out, reduction=method.reduction, activation=method.activation
        )
        return self.coupling

    def inverse(self, handle: Handle) -> Delta:
        coupling = self.coupling
        if coupling is None:
            raise InvalidConfig("InvertibleAdapter without the stack 'input' has nothing to undo.")
        width = coupling.cut + coupling.second.up.out_features // coupling.outputs
        if handle.d_out != width:
            raise InvalidConfig(
                f"InvertibleAdapter: the embeddings are {width} wide and the head's projection "
                f"{handle.path!r} reads {handle.d_out}, so nothing undoes the change there."
            )
        return Uncoupling(coupling)
