r"""The parallel adapter (He et al. 2022, arXiv:2110.04366).

    Δh = f(x W_down + b_down) W_up + b_up,    h <- h + s Δh

=================  ==========================================================
axis               value
=================  ==========================================================
functional form    bottleneck, d -> m -> d
insertion          parallel: it reads the direct input x of the feed-forward
modified           the feed-forward's output, before the residual addition
composition        h + s Δh, s fixed (4 on XSum and translation, 2 on GLUE) or learned
=================  ==========================================================

It starts like LoRA, with W_up = 0, so Δh is zero at the start.

Where the sources differ. x is what the feed-forward itself is given: in a pre-LN model the
*normalised* stream, as in the paper's text and figures. The `adapters` library and the paper's own
mBART code feed the un-normalised stream there: ``reads="stream"``; in post-LN models the two are
the same. A learned scale starts at 1 in `adapters`; here it starts at `scale`.
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
from deltakit.core.method import (
    UNIFIED_VIEW,
    InitialOutput,
    Method,
    Paper,
    Placement,
    Summable,
    register_method,
)
from deltakit.core.site import Handle, Insertion, Site
from deltakit.methods.adapter import (
    ACTIVATION_NAMES,
    INITIALISATIONS,
    bottleneck_width,
)

if TYPE_CHECKING:
    from deltakit.core.delta import Delta
    from deltakit.methods.forms.adapter import Initialisation

_READS = {"input": Site.FFN_OUT, "stream": Site.FFN_STREAM}


@register_method("parallel")
@dataclass(frozen=True, kw_only=True)
class ParallelAdapter(Summable):
    """A bottleneck parallel to the feed-forward (He et al. 2022).

    Args:
        reduction: d / m, the width of the model over the width of the bottleneck.
        bottleneck: m itself; overrides `reduction`.
        scale: s.
        learned_scale: s is trained, one scalar a layer, starting from `scale`.
        activation: the nonlinearity f.
        initialisation: "lora" starts with Δh = 0.
        dropout: on Δh, in training.
        bias: whether the two projections have one.
        reads: "input" (what the feed-forward is given) or "stream" (the stream before its norm,
            in pre-LN models).

    Raises:
        InvalidConfig: a value out of range.
    """

    reduction: float = 2
    bottleneck: int | None = None
    scale: float = 4.0
    learned_scale: bool = False
    activation: str = "relu"
    initialisation: Initialisation = "lora"
    dropout: float = 0.0
    bias: bool = True
    reads: str = "input"

    paper: ClassVar[Paper] = UNIFIED_VIEW
    learning_rate: ClassVar[float] = 3e-4

    @property
    def starts(self) -> InitialOutput:
        """At the identity, unless the initialisation is one of the sequential adapters'."""
        return InitialOutput.IDENTITY if self.initialisation == "lora" else InitialOutput.NEAR

    def __post_init__(self) -> None:
        check_positive(self, reduction=self.reduction, scale=self.scale)
        check_fraction(self, dropout=self.dropout)
        check_bool(self, learned_scale=self.learned_scale, bias=self.bias)
        check_choice(self, ACTIVATION_NAMES, activation=self.activation)
        check_choice(self, INITIALISATIONS, initialisation=self.initialisation)
        check_choice(self, tuple(_READS), reads=self.reads)
        if self.bottleneck is not None:
            check_whole(self, bottleneck=self.bottleneck)

    def placements(self) -> tuple[Placement, ...]:
        return (
            Placement(
                site=_READS[self.reads],
                make_delta=self.form,
                insertion=Insertion.PARALLEL,
                scale=1.0 if self.learned_scale else self.scale,
            ),
        )

    def sized(self, width: int) -> Method:
        return replace(self, bottleneck=width)

    def form(self, handle: Handle) -> Delta:
        """The bottleneck for one layer."""
        from deltakit.methods.forms.adapter import Bottleneck
        from deltakit.methods.forms.parallel import ScaledDelta

        bottleneck = Bottleneck(
            handle.d_in,
            handle.d_out,
            bottleneck=bottleneck_width(handle.d_in, self.reduction, self.bottleneck),
            activation=self.activation,
            initialisation=self.initialisation,
            dropout=self.dropout,
            bias=self.bias,
        )
        return ScaledDelta(bottleneck, self.scale) if self.learned_scale else bottleneck
