"""MAM, the mix-and-match adapter (He et al. 2022, arXiv:2110.04366).

A short prefix in the attention and a wide scaled adapter parallel to the feed-forward::

    MAM(length=30, bottleneck=512)  =  PrefixTuning(length=30) + ParallelAdapter(bottleneck=512)

The paper's text fixes s = 4 (2 on GLUE); the `adapters` library takes a bottleneck of d / 2 for the
adapter and of 800 for the prefix's network.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

from deltakit.core.method import (
    UNIFIED_VIEW,
    InitialOutput,
    Method,
    MethodWrapper,
    Paper,
    Sum,
    Summable,
    register_method,
)
from deltakit.methods.parallel import ParallelAdapter
from deltakit.methods.prefix import PrefixTuning


@register_method("mam")
@dataclass(frozen=True, kw_only=True)
class MAM(Summable, MethodWrapper):
    """A prefix in every attention and an adapter parallel to every feed-forward.

    Args:
        length: of the prefix.
        prefix_bottleneck: of the network that the prefix is trained through; None for none.
        reduction: d / m of the adapter.
        bottleneck: m itself; overrides `reduction`.
        scale: s of the adapter.
        bias: whether the adapter's two projections have one.
        dropout: on both changes, in training.

    Raises:
        InvalidConfig: a value out of range.
    """

    length: int = 30
    prefix_bottleneck: int | None = 512
    reduction: float = 2
    bottleneck: int | None = None
    scale: float = 4.0
    bias: bool = True
    dropout: float = 0.0

    paper: ClassVar[Paper] = UNIFIED_VIEW
    learning_rate: ClassVar[float] = 3e-4
    starts: ClassVar[InitialOutput] = InitialOutput.ELSEWHERE

    def __post_init__(self) -> None:
        self.sum()

    def sum(self) -> Sum:
        """The sum that it is."""
        prefix = PrefixTuning(
            length=self.length, bottleneck=self.prefix_bottleneck, dropout=self.dropout
        )
        return prefix + ParallelAdapter(
            reduction=self.reduction,
            bottleneck=self.bottleneck,
            scale=self.scale,
            bias=self.bias,
            dropout=self.dropout,
        )

    def sized(self, width: int) -> Method:
        """Another bottleneck of the adapter; the prefix stays."""
        return replace(self, bottleneck=width)

    @property
    def wrapped(self) -> tuple[Method, ...]:
        return self.sum().parts

    def rewrapped(self, methods: tuple[Method, ...]) -> Method:
        return self if methods == self.wrapped else Sum(parts=methods)
