r"""(IA)³: learned rescaling of inner activations (Liu et al. 2022, arXiv:2205.05638).

    k <- l_k ⊙ k,    v <- l_v ⊙ v,    γ(x W_1) <- l_ff ⊙ γ(x W_1)

In the words of the unified view this is no special case: Δ(h) = h ⊙ (l - 1), added to h.

=================  =========================================================
axis               value
=================  =========================================================
functional form    rescaling, d numbers
insertion          sequential
modified           keys, values, and the inner activation of the feed-forward
composition        h + Δh
=================  =========================================================

l starts at one, so Δh is zero at the start.

Where the sources differ. The paper and PEFT rescale the feed-forward *after* its nonlinearity (the
input of the second projection); the `adapters` library rescales the output of the first projection,
*before* it: ``feedforward="pre_activation"``. PEFT's defaults also rescale other projections on
some architectures.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from deltakit.core.checks import check_choice
from deltakit.core.delta import Additive, ByRow, Delta, OnePass, Scaling
from deltakit.core.method import Method, Paper, Placement, register_method
from deltakit.core.site import Handle, Insertion, Site

_FEEDFORWARD = {"post_activation": Site.FFN_MID, "pre_activation": Site.FFN_UP}


class Rescale(Delta, OnePass, ByRow, Scaling, Additive):
    """h ⊙ (l - 1). Shapes: ``(..., d)`` to ``(..., d)``."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.vector - 1)

    def added(self, stream: Tensor, x: Tensor, scale: float) -> Tensor:
        assert stream is x  # a sequential delta at a site whose stream is h
        return x * (1 + scale * (self.vector - 1) if scale != 1.0 else self.vector)

    def by_row(self, parameters: Mapping[str, Tensor], x: Tensor, scale: Tensor) -> Tensor:
        return x * (scale * (parameters["vector"].unsqueeze(1) - 1))

    def factor(self) -> Tensor:
        return self.vector

    def weighted_sum(
        self, terms: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """1 + Σ w (l - 1) (Zhang et al. 2023, arXiv:2306.14870)."""
        changes = [weight * (tensors["vector"] - 1) for weight, tensors in terms]
        return {"vector": 1 + torch.stack(changes).sum(0)}


@register_method("ia3")
@dataclass(frozen=True, kw_only=True)
class IA3(Method):
    """Learned rescaling of keys, values and the feed-forward's inner activation (Liu et al. 2022).

    Args:
        feedforward: "post_activation" (the paper, PEFT) or "pre_activation" (`adapters`).

    Raises:
        InvalidConfig: another value.
    """

    feedforward: str = "post_activation"

    paper: ClassVar[Paper] = Paper(
        key="liu2022ia3",
        title="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context "
        "Learning",
        authors="Liu, Haokun and Tam, Derek and Muqeeth, Mohammed and Mohta, Jay and Huang, "
        "Tenghao and Bansal, Mohit and Raffel, Colin",
        year=2022,
        venue="Advances in Neural Information Processing Systems",
        arxiv="2205.05638",
    )
    learning_rate: ClassVar[float] = 3e-2

    def __post_init__(self) -> None:
        check_choice(self, tuple(_FEEDFORWARD), feedforward=self.feedforward)

    def placements(self) -> tuple[Placement, ...]:
        return tuple(
            Placement(site=site, form=self.form, insertion=Insertion.SEQUENTIAL)
            for site in (Site.ATTN_K, Site.ATTN_V, _FEEDFORWARD[self.feedforward])
        )

    def form(self, handle: Handle) -> Delta:
        """The vector for one site."""
        return Rescale(handle.d_out)
