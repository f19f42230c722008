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

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import check_fraction, check_positive, check_whole
from deltakit.core.method import Method, Paper, Placement, register_method
from deltakit.core.site import LINEAR_SITES, Handle, Insertion, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.lora import target_names, target_sites

if TYPE_CHECKING:
    from deltakit.core.delta import Delta
    from deltakit.methods.forms.vera import Projections


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
        UnknownName: a target that is not a linear projection.
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
        from deltakit.methods.forms.vera import Projections, VectorScaled

        method, shape = self.method, (handle.d_in, handle.d_out)
        owner = shape not in self.pairs
        if owner:
            self.pairs[shape] = Projections(*shape, rank=method.rank, seed=method.seed)
        return VectorScaled(
            self.pairs[shape], owner=owner, d_initial=method.d_initial, dropout=method.dropout
        )
