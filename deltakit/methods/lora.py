r"""LoRA: a low-rank change of a linear map (Hu et al. 2022, arXiv:2106.09685).

    y = x Wᵀ + b + s · drop(x) Aᵀ Bᵀ,    A: (r, d_in),  B: (d_out, r),  s = α / r  (rsLoRA: α / √r)

=================  ===============================================
axis               value
=================  ===============================================
functional form    low rank, no nonlinearity
insertion          parallel: it reads the linear's own input
modified           the projections of queries and values by default
composition        h + s Δh
=================  ===============================================

Where the sources differ. The paper draws A from a Gaussian; the authors' code and PEFT draw it
uniformly (Kaiming with a = √5). The default here is the paper's, with PEFT's σ = 1 / r; the other
is ``initialisation="kaiming"``. B is zero in both, so Δh is zero at the start. At the table of
embeddings, where x is a token's one-hot vector, their code has A zero and B normal. On a fused
projection (GPT-2's c_attn) each site has matrices of its own over its own columns, so query and
value alone can be adapted.

rsLoRA: Kalajdzievski (2023, arXiv:2312.03732).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_positive,
    check_whole,
)
from deltakit.core.method import Method, Paper, Placement, Summable, register_method
from deltakit.core.site import LINEAR_SITES, Handle, Insertion, Site
from deltakit.errors import InvalidConfig, unknown

if TYPE_CHECKING:
    from deltakit.core.delta import Delta
    from deltakit.methods.forms.lora import Initialisation, LowRank

TARGETS = (*LINEAR_SITES, Site.EMBED)
"""The sites that a low-rank change can be made at."""


@dataclass(frozen=True, kw_only=True)
class LowRankMethod(Method):
    """The settings of a low-rank product at linear projections, B A; `LoRA` says what they are."""

    rank: int = 8
    alpha: float = 16
    targets: tuple[str, ...] = ("q", "v")
    rslora: bool = False
    dropout: float = 0.0
    initialisation: Initialisation = "gaussian"

    choices: ClassVar[tuple[Site, ...]] = LINEAR_SITES
    """The sites that it can be made at."""
    learning_rate: ClassVar[float] = 2e-3

    def __post_init__(self) -> None:
        check_whole(self, rank=self.rank)
        check_positive(self, alpha=self.alpha)
        check_fraction(self, dropout=self.dropout)
        check_choice(self, ("gaussian", "kaiming"), initialisation=self.initialisation)
        check_bool(self, rslora=self.rslora)
        object.__setattr__(self, "targets", target_names(self, self.targets))
        self.sites()

    def sites(self) -> tuple[Site, ...]:
        """The targets as sites, each once, in the order of the vocabulary."""
        return target_sites(self.targets, self.choices)

    @property
    def scale(self) -> float:
        """s, the factor of the product."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def pair(self, handle: Handle) -> LowRank:
        """A and B for one projection."""
        from deltakit.methods.forms.lora import LowRank

        return LowRank(
            handle.d_in,
            handle.d_out,
            rank=self.rank,
            dropout=self.dropout,
            initialisation=self.initialisation,
        )

    def sized(self, width: int) -> Method:
        """Another rank, at the same scale of the product."""
        return replace(self, rank=width, alpha=self.scale * (width**0.5 if self.rslora else width))


@register_method("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(LowRankMethod, Summable):
    """A low-rank change parallel to linear projections (Hu et al. 2022).

    Args:
        rank: r.
        alpha: α; the change is scaled by α / r, or α / √r with `rslora`.
        targets: sites of linear projections, by full name ("attn.q") or last word ("q"), "embed"
            for the table of token embeddings, or "all" for every linear projection that the model
            has (the table is none).
        rslora: rank-stabilised scaling.
        dropout: on the input of A, in training; a token's id cannot be dropped.
        initialisation: "gaussian" (the paper) or "kaiming" (the authors' code, PEFT), of A.

    Raises:
        InvalidConfig: a value out of range.
        UnknownName: a target that is not a linear site.
    """

    paper: ClassVar[Paper] = Paper(
        key="hu2022lora",
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        authors="Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, "
        "Yuanzhi and Wang, Shean and Wang, Lu and Chen, Weizhu",
        year=2022,
        venue="International Conference on Learning Representations",
        arxiv="2106.09685",
    )
    choices: ClassVar[tuple[Site, ...]] = TARGETS

    def placements(self) -> tuple[Placement, ...]:
        return tuple(
            Placement(
                site=site,
                make_delta=self.table if site is Site.EMBED else self.form,
                insertion=Insertion.PARALLEL,
                scale=self.scale,
                optional=self.targets == ("all",),
            )
            for site in self.sites()
        )

    def form(self, handle: Handle) -> Delta:
        """The low-rank pair for one projection."""
        return self.pair(handle)

    def table(self, handle: Handle) -> Delta:
        """The low-rank pair for a table of embeddings."""
        from deltakit.methods.forms.lora import EmbeddingLowRank

        return EmbeddingLowRank(
            handle.d_in,
            handle.d_out,
            rank=self.rank,
            scale=handle.scale,
            initialisation=self.initialisation,
        )

    def summed(self, others: Sequence[Method]) -> Method:
        """Its rank is the sum of the ranks and its scale is one; the rest is as in this one."""
        loras = [other for other in others if isinstance(other, LoRA)]
        if len(loras) < len(others):
            return super().summed(others)
        rank = self.rank + sum(lora.rank for lora in loras)
        return replace(self, rank=rank, alpha=rank, rslora=False)

    def truncated(self, rank: int) -> Method:
        rank = min(rank, self.rank)
        return replace(self, rank=rank, alpha=rank, rslora=False)


def target_names(owner: object, targets: object) -> tuple[str, ...]:
    """The names of a method's targets, one or several. Raises `InvalidConfig`."""
    kind = type(owner).__name__
    names = (targets,) if isinstance(targets, str) else targets
    if not isinstance(names, tuple | list) or not all(isinstance(n, str) for n in names):
        raise InvalidConfig(f"{kind}(targets={targets!r}): name sites, for example ('q', 'v').")
    if not names or ("all" in names and len(names) > 1):
        raise InvalidConfig(
            f"{kind}(targets={targets!r}): name at least one site, for example 'q', or 'all' alone."
        )
    return tuple(names)


def target_sites(targets: tuple[str, ...], choices: tuple[Site, ...]) -> tuple[Site, ...]:
    """Targets as sites, each once, in the order of `choices`; "all" is every linear projection.

    Raises:
        UnknownName: a target that is none of `choices`, by its full name or its last word.
    """
    if targets == ("all",):
        return LINEAR_SITES
    names = {site.value: site for site in choices}
    names |= {site.value.rpartition(".")[2]: site for site in choices}
    for target in targets:
        if target not in names:
            raise unknown("LoRA target", target, [*names, "all"])
    wanted = {names[target] for target in targets}
    return tuple(site for site in choices if site in wanted)
