"""BitFit: train the biases of the base, and nothing else (Ben Zaken et al. 2022, arXiv:2106.10199).

It puts no module anywhere: it is the method whose placements are empty and whose trained
parameters are the base's own, of which it has values of its own (`Method.trains_base_parameter`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.method import Paper, Summable, register_method

if TYPE_CHECKING:
    from torch import nn


@register_method("bitfit")
@dataclass(frozen=True, kw_only=True)
class BitFit(Summable):
    """Trains every bias of the base (Ben Zaken et al. 2022)."""

    paper: ClassVar[Paper] = Paper(
        key="benzaken2022bitfit",
        title="BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked "
        "Language-models",
        authors="Ben Zaken, Elad and Goldberg, Yoav and Ravfogel, Shauli",
        year=2022,
        venue="Annual Meeting of the Association for Computational Linguistics",
        arxiv="2106.10199",
    )
    learning_rate: ClassVar[float] = 3e-3

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        del owner
        return name.rpartition(".")[2] == "bias"
