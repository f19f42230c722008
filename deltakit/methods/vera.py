r"""VeRA: trained vectors around frozen random matrices (Kopiczko et al. 2024, arXiv:2310.11454).

    Δh = λ_b ⊙ (B (λ_d ⊙ (A x))),    A: (r, d_in),  B: (d_out, r),  λ_d: (r),  λ_b: (d_out)

=================  ======================================================
axis               value
=================  ======================================================
functional form    low rank, two trained vectors between frozen matrices
insertion          parallel: it reads the linear's own input
modified           the projections of queries and values by default
composition        h + Δh
=================  ======================================================

A and B are drawn from Kaiming's uniform distribution and never trained. All linears of one shape
share one pair. λ_b is zero at the start, so Δh is zero, and every number of λ_d is `d_initial`.

A saved delta has the two vectors and the seed alone: A and B are drawn again from a CPU generator
with that seed.

Where the sources differ. PEFT draws one pair in the largest shape of all targets and cuts it to
each; where all targets have one shape, its pair of one seed and this one are equal, bit for bit.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.checks import check_fraction, check_positive, check_whole
from deltakit.core.delta import Delta, Mergeable
from deltakit.core.method import Method, Paper, Placement, register_method
from deltakit.core.site import LINEAR_SITES, Handle, Insertion, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.lora import target_names, target_sites


class Projections(nn.Module):
    """The frozen A ``(rank, d_in)`` and B ``(d_out, rank)``, which no file contains."""

    A: Tensor
    B: Tensor

    def __init__(self, d_in: int, d_out: int, *, rank: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        self.register_buffer("A", _kaiming(rank, d_in, generator), persistent=False)
        self.register_buffer("B", _kaiming(d_out, rank, generator), persistent=False)


def _kaiming(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    bound = (6 / columns) ** 0.5
    drawn = torch.empty(rows, columns, device="cpu").uniform_(-bound, bound, generator=generator)
    return drawn.to(torch.get_default_device())


class VectorScaled(Delta, Mergeable):
    """λ_b ⊙ (B (λ_d ⊙ (A drop(x)))). Shapes: ``(..., d_in)`` to ``(..., d_out)``.

    Projections that another form owns are no child module of this one.
    """

    def __init__(
        self, projections: Projections, *, owner: bool, d_initial: float, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lambda_d = nn.Parameter(torch.full((len(projections.A),), d_initial))
        self.lambda_b = nn.Parameter(torch.zeros(len(projections.B)))
        self._projections = (projections,)
        if owner:
            self.projections = projections

    def forward(self, x: Tensor) -> Tensor:
        A, B = self._matrices(x)
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return self.lambda_b * F.linear(self.lambda_d * F.linear(x, A), B)

    def weight_change(self) -> Tensor:
        A, B = self._matrices(self.lambda_b)
        return self.lambda_b[:, None] * (B @ (self.lambda_d[:, None] * A))

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shared = self._projections[0]
        return shared.A.to(like), shared.B.to(like)


@register_method("vera")
@dataclass(frozen=True, kw_only=True)
class VeRA(Method):
    """Trained vectors around frozen random projections (Kopiczko et al. 2024).

    Args:
        rank: r.
        targets: sites of linear projections, by full name ("attn.q") or last word ("q"), or "all"
            for every linear projection that the model has.
        d_initial: every number of λ_d at the start.
        dropout: on x, in training.
        seed: of the frozen projections.

    Raises:
        InvalidConfig: a value out of range.
        UnknownName: a target that is no linear projection.
    """

    rank: int = 256
    targets: tuple[str, ...] = ("q", "v")
    d_initial: float = 0.1
    dropout: float = 0.0
    seed: int = 0

    paper: ClassVar[Paper] = Paper(
        key="kopiczko2024vera",
        title="VeRA: Vector-based Random Matrix Adaptation",
        authors="Kopiczko, Dawid J. and Blankevoort, Tijmen and Asano, Yuki M.",
        year=2024,
        venue="International Conference on Learning Representations",
        arxiv="2310.11454",
    )
    learning_rate: ClassVar[float] = 2e-2

    def __post_init__(self) -> None:
        check_whole(self, rank=self.rank)
        check_positive(self, d_initial=self.d_initial)
        check_fraction(self, dropout=self.dropout)
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise InvalidConfig(f"VeRA(seed={self.seed!r}): a whole number, zero or more.")
        object.__setattr__(self, "targets", target_names(self, self.targets))
        self.sites()

    def sites(self) -> tuple[Site, ...]:
        """The targets as sites, each once, in the order of the vocabulary."""
        return target_sites(self.targets, LINEAR_SITES)

    def placements(self) -> tuple[Placement, ...]:
        make = _Forms(self).form
        return tuple(
            Placement(
                site=site,
                make_delta=make,
                insertion=Insertion.PARALLEL,
                optional=self.targets == ("all",),
            )
            for site in self.sites()
        )

    def sized(self, width: int) -> Method:
        return replace(self, rank=width)


@dataclass
class _Forms:
    """Makes the forms one by one; the first of each shape has the pair that all of them share."""

    method: VeRA
    pairs: dict[tuple[int, int], Projections] = field(default_factory=dict)

    def form(self, handle: Handle) -> Delta:
        method, shape = self.method, (handle.d_in, handle.d_out)
        owner = shape not in self.pairs
        if owner:
            self.pairs[shape] = Projections(*shape, rank=method.rank, seed=method.seed)
        return VectorScaled(
            self.pairs[shape], owner=owner, d_initial=method.d_initial, dropout=method.dropout
        )
