r"""Compacter: adapters of Kronecker products (Karimi Mahabadi et al. 2021, arXiv:2106.04647).

    Δh = f(h H_down + b_down) H_up + b_up,    H = Σ_i A_i ⊗ B_i,    B_i = s_i t_i

    A_i: (n, n),  s_i: (d_in / n, r),  t_i: (r, d_out / n),  i = 1 … n

====================  =================================  ===========================
axis                  compacter                          compacter++
====================  =================================  ===========================
functional form       bottleneck of Kronecker products   the same
insertion             sequential                         sequential
modified              attention and FFN output, before   FFN output, before the
                      the residual addition              residual addition
composition           h + Δh                             h + Δh
====================  =================================  ===========================

The A_i are the *rule*. All layers, and both projections of each adapter, share one. With
``rank=None`` the B_i are matrices of full rank and every projection has a rule of its own: the
PHM adapter of the paper (Zhang et al. 2021, arXiv:2102.08597).

Where the sources differ. The paper's code draws the shared rule from N(0, 1e-4²), a rule that is
not shared from N(0, 0.01²), and s, t from Glorot's uniform distribution with gain √2. It trains the
layer norms too (``train_norms=True``), has no adapter behind cross-attention, and uses GELU's tanh
approximation. `adapters` draws s and t from Glorot's normal distribution, trains no norms, uses the
exact GELU, and has Compacter++ where Pfeiffer et al. have their adapter (``placement="pfeiffer"``).
"""

from dataclasses import dataclass, field
from typing import ClassVar

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
from deltakit.core.delta import Delta
from deltakit.core.method import InitialOutput, Method, Paper, Placement, register_method
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import ACTIVATIONS, bottleneck_width

PLACEMENTS = {
    "houlsby": (Site.ATTN_OUT, Site.FFN_OUT),
    "ffn": (Site.FFN_OUT,),
    "pfeiffer": (Site.BLOCK_OUT,),
}


class Rule(nn.Module):
    """The matrices A_i, ``(n, n, n)``."""

    def __init__(self, n: int, *, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, n, n))
        nn.init.normal_(self.weight, std=std)

    def forward(self) -> Tensor:
        return self.weight


class Factors(nn.Module):
    """The matrices B_i = s_i t_i, ``(n, d_in / n, d_out / n)``."""

    def __init__(self, n: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(n, d_in // n, rank))
        self.right = nn.Parameter(torch.empty(n, rank, d_out // n))
        _glorot(self.left)
        _glorot(self.right)

    def forward(self) -> Tensor:
        return torch.bmm(self.left, self.right)


class Blocks(nn.Module):
    """The matrices B_i of full rank, ``(n, d_in / n, d_out / n)``."""

    def __init__(self, n: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, d_in // n, d_out // n))
        _glorot(self.weight)

    def forward(self) -> Tensor:
        return self.weight


def _glorot(matrices: Tensor) -> None:
    for matrix in matrices.unbind():
        nn.init.xavier_uniform_(matrix, gain=2**0.5)


class HypercomplexLinear(nn.Module):
    """x H + b with H = Σ_i A_i ⊗ B_i. Shapes: ``(..., d_in)`` to ``(..., d_out)``.

    A rule that others own is no child module of this one: its numbers are counted and saved once.
    """

    def __init__(self, rule: Rule, blocks: Factors | Blocks, d_out: int, *, owner: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.bias = nn.Parameter(torch.zeros(d_out))
        self._rule = (rule,)
        if owner:
            self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight(), self.bias)

    def _weight(self) -> Tensor:
        """Hᵀ, ``(d_out, d_in)``: the same for all tokens, so it is made once a pass."""
        rule = self._rule[0]().to(self.bias.device)
        return torch.einsum("iab,icd->bdac", rule, self.blocks()).flatten(0, 1).flatten(1)


class HypercomplexBottleneck(Delta):
    """f(x H_down + b_down) H_up + b_up. Shapes: ``(..., d)`` to ``(..., d)``."""

    def __init__(
        self, down: HypercomplexLinear, up: HypercomplexLinear, activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.down = down
        self.activation = ACTIVATIONS[activation]
        self.up = up
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.up(self.activation(self.down(x)))
        return F.dropout(change, self.dropout, self.training) if self.dropout else change


@register_method("compacter")
@register_method("compacter++", placement="ffn")
@register_method("phm", n=12, rank=None)
@dataclass(frozen=True, kw_only=True)
class Compacter(Method):
    """A bottleneck adapter whose projections are sums of Kronecker products (Karimi Mahabadi 2021).

    Args:
        placement: "houlsby" (Compacter: after both sub-modules), "ffn" (Compacter++: after the
            feed-forward), or "pfeiffer" (Compacter++ in `adapters`).
        n: how many Kronecker products a projection is the sum of. It divides d and the bottleneck.
        rank: r, of each B_i; None for full rank, with a rule for each projection (PHM).
        reduction: d / m, the width of the model over the width of the bottleneck.
        bottleneck: m itself; overrides `reduction`.
        activation: the nonlinearity f, by transformers' name.
        dropout: on Δh, in training.
        train_norms: train the base's norm layers too, as the paper does.
        cross_attention: adapters behind the attention from a decoder to an encoder, too.

    Raises:
        InvalidConfig: a value out of range, or widths that n does not divide.
    """

    placement: str = "houlsby"
    n: int = 4
    rank: int | None = 1
    reduction: float = 32
    bottleneck: int | None = None
    activation: str = "gelu_new"
    dropout: float = 0.0
    train_norms: bool = False
    cross_attention: bool = False

    paper: ClassVar[Paper] = Paper(
        key="mahabadi2021compacter",
        title="Compacter: Efficient Low-Rank Hypercomplex Adapter Layers",
        authors="Karimi Mahabadi, Rabeeh and Henderson, James and Ruder, Sebastian",
        year=2021,
        venue="Advances in Neural Information Processing Systems",
        arxiv="2106.04647",
    )
    learning_rate: ClassVar[float] = 3e-3
    starts: ClassVar[InitialOutput] = InitialOutput.NEAR

    def __post_init__(self) -> None:
        check_choice(self, tuple(PLACEMENTS), placement=self.placement)
        check_choice(self, tuple(ACTIVATIONS), activation=self.activation)
        check_whole(self, n=self.n)
        check_positive(self, reduction=self.reduction)
        check_fraction(self, dropout=self.dropout)
        check_bool(self, train_norms=self.train_norms, cross_attention=self.cross_attention)
        if self.rank is not None:
            check_whole(self, rank=self.rank)
        if self.bottleneck is not None:
            check_whole(self, bottleneck=self.bottleneck)

    def placements(self) -> tuple[Placement, ...]:
        make = _Adapters(self).form
        return tuple(
            Placement(
                site=site,
                make_delta=make,
                insertion=Insertion.SEQUENTIAL,
                cross_attention=self.cross_attention,
            )
            for site in PLACEMENTS[self.placement]
        )

    def sized(self, width: int) -> Method | None:
        """Its width is a multiple of n, so few widths are possible."""
        del width
        return None

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        return self.train_norms and type(owner).__name__.endswith("Norm")


@dataclass
class _Adapters:
    """Makes the adapters one by one; the first has the rule that all of them share."""

    method: Compacter
    shared: list[Rule] = field(default_factory=list)

    def form(self, handle: Handle) -> Delta:
        method, d = self.method, handle.d_out
        m = bottleneck_width(d, method.reduction, method.bottleneck)
        _check_divides(method.n, d, m)
        down, up = self._linear(d, m), self._linear(m, d)
        return HypercomplexBottleneck(down, up, method.activation, method.dropout)

    def _linear(self, d_in: int, d_out: int) -> HypercomplexLinear:
        n, rank = self.method.n, self.method.rank
        if rank is None:
            rule, blocks = Rule(n, std=0.01), Blocks(n, d_in, d_out)
            return HypercomplexLinear(rule, blocks, d_out, owner=True)
        owner = not self.shared
        if owner:
            self.shared.append(Rule(n, std=1e-4))
        return HypercomplexLinear(self.shared[0], Factors(n, d_in, d_out, rank), d_out, owner=owner)


def _check_divides(n: int, d: int, m: int) -> None:
    for what, width in (("the model", d), ("the bottleneck", m)):
        if width % n:
            raise InvalidConfig(
                f"Compacter(n={n}): {what} has width {width}, which is no multiple of {n}. Take an "
                f"n that divides {d} and {m}, or set bottleneck= to a multiple of {n}."
            )
