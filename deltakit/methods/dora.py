r"""DoRA: a weight's direction and its length, apart (Liu et al. 2024, arXiv:2402.09353).

    W' = m ⊙ (W + s B A) / ‖W + s B A‖,    m: (d_out),  A: (r, d_in),  B: (d_out, r)

The norm is that of each output's row of weights. As a change of the linear's output, with
g = m / ‖W + s B A‖ and without its bias:

    Δh = (g - 1) h + g s · x Aᵀ Bᵀ

=================  ===============================================
axis               value
=================  ===============================================
functional form    low rank, and a scale for each output
insertion          it reads both x and h
modified           the projections of queries and values by default
composition        h + Δh
=================  ===============================================

m starts at ‖W‖ and B at zero, so Δh is zero at the start. The norm is a constant in the backward
pass, as in section 4.3 of the paper. On a quantised base it is that of the weight which the linear
computes with.

Where the sources differ. With dropout, the authors' code and PEFT compute (g - 1) x Wᵀ from the
input that dropout has changed, a second product with W; so does this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.method import Paper, Placement, register_method
from deltakit.core.site import Handle, Insertion
from deltakit.errors import InvalidConfig
from deltakit.methods.lora import LowRankMethod

if TYPE_CHECKING:
    from deltakit.core.delta import Delta


@register_method("dora")
@dataclass(frozen=True, kw_only=True)
class DoRA(LowRankMethod):
    """A low-rank change of a weight's direction, and a trained length (Liu et al. 2024).

    Args:
        rank: r.
        alpha: α; the low-rank product is scaled by α / r, or α / √r with `rslora`.
        targets: sites of linear projections, by full name ("attn.q") or last word ("q"), or "all"
            for every linear projection that the model has.
        rslora: rank-stabilised scaling.
        dropout: on x, in training.
        initialisation: "gaussian" or "kaiming" (the authors' code, PEFT), of A.

    Raises:
        InvalidConfig: a value out of range.
        UnknownName: a target that is not a linear projection.
    """

    paper: ClassVar[Paper] = Paper(
        key="liu2024dora",
        title="DoRA: Weight-Decomposed Low-Rank Adaptation",
        authors="Liu, Shih-Yang and Wang, Chien-Yi and Yin, Hongxu and Molchanov, Pavlo and Wang, "
        "Yu-Chiang Frank and Cheng, Kwang-Ting and Chen, Min-Hung",
        year=2024,
        venue="International Conference on Machine Learning",
        arxiv="2402.09353",
    )

    def placements(self) -> tuple[Placement, ...]:
        return tuple(
            Placement(
                site=site,
                make_delta=self.form,
                insertion=Insertion.PARALLEL,
                optional=self.targets == ("all",),
            )
            for site in self.sites()
        )

    def form(self, handle: Handle) -> Delta:
        """The decomposed change of one projection."""
        from deltakit.methods.forms.dora import WeightDecomposed

        if handle.linear is None:
            raise InvalidConfig(
                f"DoRA: {handle.path!r} is not a linear projection, so it has no weight."
            )
        return WeightDecomposed(handle.linear, self.pair(handle), scale=self.scale)
