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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_positive,
    check_whole,
)
from deltakit.core.delta import BatchedRows, CustomSum, Delta, FusedAdd, Mergeable, add_product
from deltakit.core.method import Method, Paper, Placement, Summable, register_method
from deltakit.core.site import LINEAR_SITES, Handle, Insertion, Site
from deltakit.errors import InvalidConfig, unknown

TARGETS = (*LINEAR_SITES, Site.EMBED)
"""The sites that a low-rank change can be made at."""

Initialisation = Literal["gaussian", "kaiming"]


class LowRank(Delta, FusedAdd, BatchedRows, Mergeable, CustomSum):
    """drop(x) Aᵀ Bᵀ. Shapes: ``(..., d_in)`` to ``(..., d_out)`` through ``(..., rank)``."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        rank: int,
        dropout: float = 0.0,
        initialisation: Initialisation = "gaussian",
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lora_A = nn.Parameter(torch.empty(rank, d_in))
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank))
        match initialisation:
            case "gaussian":
                nn.init.normal_(self.lora_A, std=1 / rank)
            case "kaiming":
                nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(F.linear(x, self.lora_A), self.lora_B)

    def added(self, stream: Tensor, x: Tensor, scale: float) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = F.linear(x, self.lora_A)
        return add_product(stream, low, self.lora_B, scale)

    def by_row(self, parameters: Mapping[str, Tensor], x: Tensor, scale: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = torch.bmm(x, parameters["lora_A"].mT) * scale
        return torch.bmm(low, parameters["lora_B"].mT)

    def weight_change(self) -> Tensor:
        return self.lora_B @ self.lora_A

    def weighted_sum(
        self, terms: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """Σ w B A, exactly where the ranks add up to this form's, else its best approximation."""
        return _sum_of_products(terms, self.lora_A.shape[0])


class EmbeddingLowRank(Delta, Mergeable, CustomSum):
    """The rows of Aᵀ for the given ids, times Bᵀ. Shapes: ids ``(...)`` to ``(..., d)``.

    `scale` is what the table itself multiplies its vectors by.
    """

    def __init__(
        self,
        vocabulary: int,
        d: int,
        *,
        rank: int,
        scale: float = 1.0,
        initialisation: Initialisation = "gaussian",
    ) -> None:
        super().__init__()
        self.scale = scale
        self.lora_A = nn.Parameter(torch.zeros(rank, vocabulary))
        self.lora_B = nn.Parameter(torch.zeros(d, rank))
        match initialisation:
            case "gaussian":
                nn.init.normal_(self.lora_A, std=1 / rank)
            case "kaiming":
                nn.init.normal_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.embedding(x, self.lora_A.T), self.lora_B) * self.scale

    def weight_change(self) -> Tensor:
        return self.lora_B @ self.lora_A

    def weighted_sum(
        self, terms: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """Σ w B A, as `LowRank` has it."""
        return _sum_of_products(terms, self.lora_A.shape[0])


def _sum_of_products(
    terms: Sequence[tuple[float, Mapping[str, Tensor]]], rank: int
) -> dict[str, Tensor]:
    A = torch.cat([tensors["lora_A"] for _, tensors in terms])
    B = torch.cat([weight * tensors["lora_B"] for weight, tensors in terms], dim=1)
    if rank < len(A):
        A, B = _truncate(A, B, rank)
    return {"lora_A": A, "lora_B": B}


def _truncate(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of the best approximation of B A, shared out evenly, zero beyond its own rank."""
    (left, upper), (right, lower) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = s[:rank].sqrt()
    missing = rank - len(root)
    A = (root * (right @ v.T)[:, : len(root)]).T
    B = (left @ u)[:, : len(root)] * root
    return F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))


@register_method("lora")
@dataclass(frozen=True, kw_only=True)
class LoRA(Summable):
    """A low-rank change parallel to linear projections (Hu et al. 2022).

    Args:
        rank: r.
        alpha: α; the change is scaled by α / r, or α / √r with `rslora`.
        targets: sites of linear projections, by full name ("attn.q") or last word ("q"), "embed"
            for the table of token embeddings, or "all" for every linear projection that the model
            has (the table is none).
        rslora: rank-stabilised scaling.
        dropout: on the input of A, in training; a token's id cannot be dropped.
        initialisation: "gaussian" (the paper) or "kaiming" (the authors' code, PEFT).

    Raises:
        InvalidConfig: a value out of range.
        UnknownName: a target that is not a linear site.
    """

    rank: int = 8
    alpha: float = 16
    targets: tuple[str, ...] = ("q", "v")
    rslora: bool = False
    dropout: float = 0.0
    initialisation: Initialisation = "gaussian"

    paper: ClassVar[Paper] = Paper(
        key="hu2022lora",
        title="LoRA: Low-Rank Adaptation of Large Language Models",
        authors="Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, "
        "Yuanzhi and Wang, Shean and Wang, Lu and Chen, Weizhu",
        year=2022,
        venue="International Conference on Learning Representations",
        arxiv="2106.09685",
    )
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
        return target_sites(self.targets, TARGETS)

    def placements(self) -> tuple[Placement, ...]:
        scale = self.alpha / (self.rank**0.5 if self.rslora else self.rank)
        return tuple(
            Placement(
                site=site,
                make_delta=self.table if site is Site.EMBED else self.form,
                insertion=Insertion.PARALLEL,
                scale=scale,
                optional=self.targets == ("all",),
            )
            for site in self.sites()
        )

    def form(self, handle: Handle) -> Delta:
        """The low-rank pair for one projection."""
        return LowRank(
            handle.d_in,
            handle.d_out,
            rank=self.rank,
            dropout=self.dropout,
            initialisation=self.initialisation,
        )

    def table(self, handle: Handle) -> Delta:
        """The low-rank pair for a table of embeddings."""
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

    def sized(self, width: int) -> Method:
        """Another rank, at the same scale of the change."""
        scale = self.alpha / (self.rank**0.5 if self.rslora else self.rank)
        return replace(self, rank=width, alpha=scale * (width**0.5 if self.rslora else width))

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
