r"""Sequential bottleneck adapters, in the two placements of the literature.

    Δh = f(h W_down + b_down) W_up + b_up,    h <- h + s Δh

====================  =================================  ==========  ===========
axis                  houlsby                            pfeiffer    value
====================  =================================  ==========  ===========
functional form       bottleneck                         bottleneck  f, d -> m -> d
insertion             sequential                         sequential
modified              attention and FFN output, before   the stream that leaves the
                      the residual addition              block, around its last norm
composition           h + Δh                             h + Δh
====================  =================================  ==========  ===========

Houlsby et al. (2019, arXiv:1902.00751) put one adapter after each of the two sub-modules of a
layer. Pfeiffer et al. (2021, arXiv:2005.00247) keep the one after the feed-forward; in a post-LN
model it reads LN(h + x) and its change enters the residual sum *before* that norm, which then runs
again: y = LN(h + x + Δ(LN(h + x))). In a pre-LN model the stream has no norm there and
y = s + Δ(s) with s = x + h.

Where the sources differ. Houlsby's text names no nonlinearity and its code uses GELU; the
`adapters` library uses swish. The paper also trains the model's layer norms (`train_norms=True`);
`adapters` does not, and neither does the default here, so that a count is a count of adapters.
The paper initialises with σ = 1e-2, its code with 1e-3; `adapters` draws from N(0, 0.02²).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import (
    check_bool,
    check_choice,
    check_fraction,
    check_positive,
    check_whole,
)
from deltakit.core.method import InitialOutput, Method, Paper, Placement, Summable, register_method
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.norms import is_norm

if TYPE_CHECKING:
    from torch import nn

    from deltakit.core.delta import Delta
    from deltakit.methods.forms.adapter import Initialisation

HOULSBY = Paper(
    key="houlsby2019parameter",
    title="Parameter-Efficient Transfer Learning for NLP",
    authors="Houlsby, Neil and Giurgiu, Andrei and Jastrzebski, Stanislaw and Morrone, Bruna and "
    "de Laroussilhe, Quentin and Gesmundo, Andrea and Attariyan, Mona and Gelly, Sylvain",
    year=2019,
    venue="International Conference on Machine Learning",
    arxiv="1902.00751",
)


PFEIFFER = Paper(
    key="pfeiffer2021adapterfusion",
    title="AdapterFusion: Non-Destructive Task Composition for Transfer Learning",
    authors="Pfeiffer, Jonas and Kamath, Aishwarya and Rücklé, Andreas and Cho, Kyunghyun and "
    "Gurevych, Iryna",
    year=2021,
    venue="Conference of the European Chapter of the Association for Computational Linguistics",
    arxiv="2005.00247",
)


ACTIVATION_NAMES = ("relu", "gelu", "gelu_new", "silu", "swish", "tanh", "leaky_relu", "identity")
"""The nonlinearities f, by transformers' names."""

INITIALISATIONS: tuple[Initialisation, ...] = ("truncated_normal", "normal", "lora")


@dataclass(frozen=True)
class _Preset:
    sites: tuple[Site, ...]
    activation: str
    initialisation: Initialisation
    paper: Paper


_PRESETS = {
    "houlsby": _Preset((Site.ATTN_OUT, Site.FFN_OUT), "gelu", "truncated_normal", HOULSBY),
    "ffn": _Preset((Site.FFN_OUT,), "gelu", "truncated_normal", HOULSBY),
    "pfeiffer": _Preset((Site.BLOCK_OUT,), "relu", "normal", PFEIFFER),
}


@register_method("adapter")
@register_method(
    "pfeiffer", "An adapter where each block ends; the same as adapter.", placement="pfeiffer"
)
@register_method(
    "houlsby", "An adapter after each attention and each feed-forward.", placement="houlsby"
)
@dataclass(frozen=True, kw_only=True)
class SequentialAdapter(Summable):
    """A bottleneck that reads the representation it changes (Houlsby 2019, Pfeiffer 2021).

    Args:
        placement: "pfeiffer" (where the block ends), "houlsby" (after both sub-modules) or "ffn"
            (Houlsby's second place alone: after the feed-forward).
        reduction: d / m, the width of the model over the width of the bottleneck.
        bottleneck: m itself; overrides `reduction`.
        activation: the nonlinearity; None takes the placement's own (pfeiffer relu, houlsby gelu).
        initialisation: None takes the placement's own (pfeiffer "normal", houlsby
            "truncated_normal"); "lora" starts exactly at the identity.
        scale: the s of h + s Δh.
        dropout: on Δh, in training.
        bias: whether the two projections have one.
        train_norms: train the base's norm layers too, as Houlsby et al. do.

    Raises:
        InvalidConfig: a value out of range.
    """

    placement: str = "pfeiffer"
    reduction: float = 16
    bottleneck: int | None = None
    activation: str | None = None
    initialisation: Initialisation | None = None
    scale: float = 1.0
    dropout: float = 0.0
    bias: bool = True
    train_norms: bool = False

    learning_rate: ClassVar[float] = 3e-3

    def __post_init__(self) -> None:
        check_choice(self, tuple(_PRESETS), placement=self.placement)
        check_positive(self, reduction=self.reduction, scale=self.scale)
        check_fraction(self, dropout=self.dropout)
        check_bool(self, bias=self.bias, train_norms=self.train_norms)
        if self.bottleneck is not None:
            check_whole(self, bottleneck=self.bottleneck)
        if self.activation is not None:
            check_choice(self, ACTIVATION_NAMES, activation=self.activation)
        if self.initialisation is not None:
            check_choice(self, INITIALISATIONS, initialisation=self.initialisation)

    @property
    def paper(self) -> Paper:
        """The paper of the placement."""
        return _PRESETS[self.placement].paper

    @property
    def starts(self) -> InitialOutput:
        """Near the identity in both papers, exactly there with "lora"."""
        return (
            InitialOutput.IDENTITY
            if self.settled().initialisation == "lora"
            else InitialOutput.NEAR
        )

    def settled(self) -> SequentialAdapter:
        """The same, with what the placement chooses written out."""
        preset = _PRESETS[self.placement]
        return replace(
            self,
            activation=self.activation or preset.activation,
            initialisation=self.initialisation or preset.initialisation,
        )

    def placements(self) -> tuple[Placement, ...]:
        return tuple(
            Placement(
                site=site, make_delta=self.form, insertion=Insertion.SEQUENTIAL, scale=self.scale
            )
            for site in _PRESETS[self.placement].sites
        )

    def form(self, handle: Handle) -> Delta:
        """The bottleneck for one site."""
        from deltakit.methods.forms.adapter import Bottleneck

        preset = _PRESETS[self.placement]
        return Bottleneck(
            handle.d_out,
            handle.d_out,
            bottleneck=bottleneck_width(handle.d_out, self.reduction, self.bottleneck),
            activation=self.activation or preset.activation,
            initialisation=self.initialisation or preset.initialisation,
            dropout=self.dropout,
            bias=self.bias,
        )

    def sized(self, width: int) -> Method:
        return replace(self, bottleneck=width)

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        return self.train_norms and is_norm(owner)


def bottleneck_width(d: int, reduction: float, bottleneck: int | None) -> int:
    """m for a model of width d.

    Raises:
        InvalidConfig: the reduction leaves no width at all.
    """
    width = bottleneck if bottleneck is not None else int(d // reduction)
    if width < 1:
        raise InvalidConfig(
            f"reduction={reduction} leaves no bottleneck in a model of width {d}. Take a reduction "
            f"of at most {d}, or set bottleneck=."
        )
    return width
