r"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190).

    head = softmax(Q [P_k; K]ᵀ / √d) [P_v; V] = (1 - λ) head_without + λ softmax(Q P_kᵀ / √d) P_v

with λ the share of the softmax that the l prefix keys take (He et al. 2022, eq. 7): a gated change.

=================  ==============================================================
axis               value
=================  ==============================================================
functional form    softmax(Q P_kᵀ) P_v, with P_k and P_v learned, l of each
insertion          parallel: it reads the query of the attention
modified           the output of each head, in every attention that the model has
composition        (1 - λ) h + λ Δh, which the concatenation does by itself
=================  ==============================================================

It is trained through a small network, P = tanh(E W_1 + b_1) W_2 + b_2, whose E and W_1 all layers
of a stack share, and deployed without it: `deploy` keeps 2 l d numbers a layer.

Where the sources differ. Keys and values enter behind the projection, the rotation and the cache,
as in `adapters`, so no position is shifted. PEFT passes them as a cache, so its tokens' positions
begin at l, which shortens the context by l: that is ``positions="shifted"``, h + l at the site of
the tokens' positions. In T5 the library counts the prefix in the relative positions of keys, and
not in those of queries: that is ``positions="counted"``. PEFT's encoder-decoder models have
prefixes in the decoder's self-attention alone, where the paper and this have them in all three. E
starts from N(0, 1) in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from deltakit.core.checks import check_choice, check_fraction, check_whole
from deltakit.core.method import InitialOutput, Method, Paper, Placement, Summable, register_method
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from deltakit.core.delta import Delta
    from deltakit.methods.forms.prefix import Trunk


@dataclass
class _Network:
    """Makes the layers' deltas one by one, the first of each stack with the trunk."""

    method: PrefixTuning
    trunks: dict[str, Trunk] = field(default_factory=dict)

    def form(self, handle: Handle) -> Delta:
        from deltakit.methods.forms.prefix import (
            CountedReparametrisedPrefix,
            ReparametrisedPrefix,
            Trunk,
        )

        kind = (
            CountedReparametrisedPrefix if _counted(self.method, handle) else ReparametrisedPrefix
        )
        method, owner = self.method, handle.stack not in self.trunks
        assert method.bottleneck is not None
        if owner:
            self.trunks[handle.stack] = Trunk(method.length, handle.d_in, method.bottleneck)
        return kind(self.trunks[handle.stack], handle.d_out, owner=owner, dropout=method.dropout)


@register_method("prefix")
@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Summable):
    """Learned keys and values in front of those of every attention (Li & Liang 2021).

    Args:
        length: l, how many keys and values in each layer.
        bottleneck: width of the network that they are trained through; None trains them directly.
        dropout: on the keys and values, in training.
        positions: of the tokens: "kept", or "shifted" by l, as if the prefix were tokens (PEFT);
            "counted" in a model with biases of relative positions (T5) has the keys, and not the
            queries, begin at l (AdapterHub).

    Raises:
        InvalidConfig: a value out of range.
    """

    length: int = 30
    bottleneck: int | None = 512
    dropout: float = 0.0
    positions: Literal["kept", "shifted", "counted"] = "kept"

    paper: ClassVar[Paper] = Paper(
        key="li2021prefix",
        title="Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        authors="Li, Xiang Lisa and Liang, Percy",
        year=2021,
        venue="Annual Meeting of the Association for Computational Linguistics",
        arxiv="2101.00190",
    )
    learning_rate: ClassVar[float] = 3e-3
    starts: ClassVar[InitialOutput] = InitialOutput.ELSEWHERE

    def __post_init__(self) -> None:
        check_whole(self, length=self.length)
        check_fraction(self, dropout=self.dropout)
        check_choice(self, ("kept", "shifted", "counted"), positions=self.positions)
        if self.bottleneck is not None:
            check_whole(self, bottleneck=self.bottleneck)

    def placements(self) -> tuple[Placement, ...]:
        form = self.form if self.bottleneck is None else _Network(self).form
        prefix = Placement(site=Site.ATTN_KV, make_delta=form, insertion=Insertion.PARALLEL)
        shift = Placement(
            site=Site.POSITION_IDS, make_delta=self.shift, insertion=Insertion.SEQUENTIAL
        )
        return (prefix, shift) if self.positions == "shifted" else (prefix,)

    def form(self, handle: Handle) -> Delta:
        """The plain keys and values of one layer."""
        from deltakit.methods.forms.prefix import CountedPrefix, Prefix

        kind = CountedPrefix if _counted(self, handle) else Prefix
        return kind(self.length, handle.d_out, dropout=self.dropout)

    def shift(self, handle: Handle) -> Delta:
        """The number that is added to the tokens' positions."""
        from deltakit.methods.forms.prefix import Shift

        del handle
        return Shift(self.length)

    def deployed(self) -> Method:
        return replace(self, bottleneck=None)

    def sized(self, width: int) -> Method:
        """Another bottleneck of the network, or another length where there is none."""
        if self.bottleneck is None:
            return replace(self, length=width)
        return replace(self, bottleneck=width)


def _counted(method: PrefixTuning, handle: Handle) -> bool:
    """Whether relative positions count the prefix. Raises `InvalidConfig` where there are none."""
    if method.positions == "counted" and handle.relative is None and handle.stack != "cross":
        raise InvalidConfig(
            "PrefixTuning(positions='counted'): this model has no biases of relative positions "
            "that could count the prefix. Take 'kept' or 'shifted'."
        )
    return method.positions == "counted"
