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

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_positive,
    check_whole,
)
from deltakit.core.method import InitialOutput, Method, Paper, Placement, register_method
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import ACTIVATION_NAMES, bottleneck_width
from deltakit.methods.norms import is_norm

if TYPE_CHECKING:
    from torch import nn

    from deltakit.core.delta import Delta
    from deltakit.methods.forms.compacter import HypercomplexLinear, Rule

PLACEMENTS = {
    "houlsby": (Site.ATTN_OUT, Site.FFN_OUT),
    "ffn": (Site.FFN_OUT,),
    "pfeiffer": (Site.BLOCK_OUT,),
}


@register_method("compacter")
@register_method("compacter++", "Compacter after each feed-forward alone.", placement="ffn")
@register_method("phm", "Compacter with Kronecker factors of full rank.", n=12, rank=None)
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
        check_choice(self, ACTIVATION_NAMES, activation=self.activation)
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
        return self.train_norms and is_norm(owner)


@dataclass
class _Adapters:
    """Makes the adapters one by one; the first has the rule that all of them share."""

    method: Compacter
    shared: list[Rule] = field(default_factory=list)

    def form(self, handle: Handle) -> Delta:
        from deltakit.methods.forms.compacter import HypercomplexBottleneck

        method, d = self.method, handle.d_out
        m = bottleneck_width(d, method.reduction, method.bottleneck)
        _check_divides(method.n, d, m)
        down, up = self._linear(d, m), self._linear(m, d)
        return HypercomplexBottleneck(down, up, method.activation, method.dropout)

    def _linear(self, d_in: int, d_out: int) -> HypercomplexLinear:
        from deltakit.methods.forms.compacter import Blocks, Factors, HypercomplexLinear, Rule

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
                f"Compacter(n={n}): {what} has width {width}, which is not a multiple of {n}. Take "
                f"an n that divides {d} and {m}, or set bottleneck= to a multiple of {n}."
            )
