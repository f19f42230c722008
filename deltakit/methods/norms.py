"""Norm tuning: train the norms of the base, nothing else (Zhao et al. 2024, arXiv:2312.11420).

Like BitFit it puts no module anywhere: its placements are empty, and it has values of its own for
the weights and biases of every norm layer (`Method.trains_base_parameter`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.method import Paper, Summable, register_method

if TYPE_CHECKING:
    from torch import nn


@register_method("norms")
@dataclass(frozen=True, kw_only=True)
class NormTuning(Summable):
    """Trains every norm layer of the base (Zhao et al. 2024)."""

    paper: ClassVar[Paper] = Paper(
        key="zhao2024tuning",
        title="Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning",
        authors="Zhao, Bingchen and Tu, Haoqin and Wei, Chen and Mei, Jieru and Xie, Cihang",
        year=2024,
        venue="International Conference on Learning Representations",
        arxiv="2312.11420",
    )
    learning_rate: ClassVar[float] = 3e-3

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        del name
        return is_norm(owner)


def is_norm(module: nn.Module) -> bool:
    """True for a norm layer, which transformers names so in every family."""
    return type(module).__name__.endswith("Norm")
