r"""MoA: a sum of kinds, whose parts one router a block weighs (Cao et al. 2026, arXiv:2506.05928).

    h_k <- h_k + w_k Δh_k,    w = σ(R(x)),    k = 1 … K

x is the stream that enters the block, and w is computed once for all K parts of it: a number
between 0 and 1 for each token and part, not a softmax. A part is one placement in a block, so LoRA
at six projections is six parts.

===============  =======================================================================
`router`         R
===============  =======================================================================
``"swiglu"``     W_2 (silu(W_1 x) ⊙ W_3 x), 4K wide inside, with biases that start at zero
``"linear"``     W x + b
===============  =======================================================================

*Sparse MoA* has a threshold for each token, t(x) = `threshold` · σ(v x + c), and w_k is zero where
it is below t.

Where the sources differ. The paper's soft kind has a prompt too, with a softmax of its own in the
attention; there is no such form here, and a prefix is refused, because its positions are the same
for all tokens. In the public code no gradient reaches the threshold. Here it has the one that it
would have if w_k were w_k (1 - t) near it, and the output is the code's. Public code starts the
parallel adapter near zero, here it starts at zero. Behind cross-attention there is no part.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from deltakit.core.checks import check_choice
from deltakit.core.method import FormWrapper, Method, Paper, Placement, register_method
from deltakit.core.site import INPUT_SITES, Handle, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.lora import LoRA
from deltakit.methods.parallel import ParallelAdapter

if TYPE_CHECKING:
    from deltakit.core.delta import Delta
    from deltakit.methods.forms.moa import BlockRouter

MOA = LoRA(rank=8, alpha=8, targets=("q", "k", "v", "o", "up", "down")) + ParallelAdapter(
    bottleneck=16, activation="silu", scale=1
)

WIDTHS = {
    **dict.fromkeys((Site.ATTN_Q, Site.ATTN_K, Site.ATTN_V, Site.FFN_GATE, Site.FFN_UP), "d_in"),
    **dict.fromkeys((Site.ATTN_O, Site.ATTN_OUT, Site.FFN_DOWN, Site.FFN_OUT), "d_out"),
    **dict.fromkeys((Site.FFN_STREAM, Site.BLOCK_OUT), "d_out"),
}
"""By site, the width of its handle that is the stream's."""


@register_method("moa")
@dataclass(frozen=True, kw_only=True, init=False)
class MoA(FormWrapper):
    """A sum whose parts are weighed token by token, by one router in each block.

    ``MoA(LoRA(targets=("q", "v")) + ParallelAdapter())``.

    Args:
        method: what is weighed: adapters, LoRA, (IA)³ and sums of them.
        router: "swiglu" or "linear".
        threshold: the highest threshold below which a weight is zero; None for none.

    Raises:
        InvalidConfig: a value out of range, or a method that adds tokens or positions.
    """

    method: Method
    router: Literal["swiglu", "linear"]
    threshold: float | None

    paper: ClassVar[Paper] = Paper(
        key="cao2026moa",
        title="MoA: Heterogeneous Mixture of Adapters for Parameter-Efficient Fine-Tuning of "
        "Large Language Models",
        authors="Cao, Jie and others",
        year=2026,
        venue="Annual Meeting of the Association for Computational Linguistics",
        arxiv="2506.05928",
    )

    def __init__(
        self,
        method: Method | None = None,
        *,
        router: Literal["swiglu", "linear"] = "swiglu",
        threshold: float | None = 0.5,
    ) -> None:
        object.__setattr__(self, "method", MOA if method is None else method)
        object.__setattr__(self, "router", router)
        object.__setattr__(self, "threshold", threshold)
        self.check_method()
        check_choice(self, ("swiglu", "linear"), router=router)
        if threshold is not None and not 0 < threshold <= 1:
            raise InvalidConfig(f"MoA(threshold={threshold!r}): above 0 and at most 1, or none.")
        outside = [p.site for p in self.method.placements() if p.site in INPUT_SITES]
        if outside:
            raise InvalidConfig(
                f"MoA: {type(self.method).__name__} acts at {outside[0].value!r}, before all "
                "blocks, where no router reads. Weigh what acts in blocks."
            )

    def placements(self) -> tuple[Placement, ...]:
        parts = _Parts(self, self.method.placements())
        return tuple(
            replace(each, make_delta=partial(parts.form, index), cross_attention=False)
            for index, each in enumerate(parts.placements)
        )

    def form(self, placement: Placement, handle: Handle) -> Delta:
        """The form of one part with a router of its own; `placements` has those that share one."""
        return _Parts(self, (placement,)).form(0, handle)


@dataclass
class _Parts:
    """Makes the parts one by one; the first of each block has its router."""

    method: MoA
    placements: tuple[Placement, ...]
    routers: dict[tuple[str, int], BlockRouter] = field(default_factory=dict)

    def form(self, index: int, handle: Handle) -> Delta:
        from deltakit.methods.forms.moa import WeighedPart, check_weighed

        made, block = self.placements[index].make_delta(handle), (handle.stack, handle.layer)
        check_weighed(made)
        owner = block not in self.routers
        if owner:
            self.routers[block] = self._router(handle)
        return WeighedPart(made, self.routers[block], index, owner=owner)

    def _router(self, handle: Handle) -> BlockRouter:
        from deltakit.methods.forms.moa import BlockRouter

        if handle.site not in WIDTHS:
            raise InvalidConfig(
                f"MoA: the first part of a block is at {handle.site.value!r}, where the width of "
                f"the stream is not known. Begin the sum with a part at one of {', '.join(WIDTHS)}."
            )
        width: int = getattr(handle, WIDTHS[handle.site])
        names = tuple(placement.site.value for placement in self.placements)
        return BlockRouter(width, names, self.method.router, self.method.threshold)
