"""The two baselines that every comparison needs: train nothing of the base, train all of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.method import Paper, Role, Summable, register_method

if TYPE_CHECKING:
    from torch import nn

_BERT = Paper(
    key="devlin2019bert",
    title="BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
    authors="Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and Toutanova, Kristina",
    year=2019,
    venue="Conference of the North American Chapter of the Association for Computational "
    "Linguistics",
    arxiv="1810.04805",
)


@register_method("head")
@dataclass(frozen=True, kw_only=True)
class HeadOnly(Summable):
    """Trains the task head on the frozen base: the floor that a delta must beat."""

    paper: ClassVar[Paper] = _BERT
    learning_rate: ClassVar[float] = 2e-2
    role: ClassVar[Role] = Role.FLOOR


@register_method("full")
@dataclass(frozen=True, kw_only=True)
class FullFineTuning(Summable):
    """Trains every parameter of the base and the head.

    While it is attached the original weights are kept too, so that `detach`
    restores them.
    """

    paper: ClassVar[Paper] = _BERT
    learning_rate: ClassVar[float] = 1e-4
    role: ClassVar[Role] = Role.CEILING

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        del name, owner
        return True
