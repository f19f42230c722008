"""Actions of a method between training steps: a rank that moves, a gate that is warmed up."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """One update by the optimiser.

    Attributes:
        index: how many updates were made before it.
        total: how many the training makes.
    """

    index: int
    total: int


class StepCallback(ABC):  # noqa: B024
    """An action of a method around each update, on the modules of its delta.

    A callback may keep state of its own; a method makes new ones for each training. Override one
    of the two functions or both. In a sum of methods the modules are those of all its parts: a
    callback picks its own by their class.
    """

    def before_update(self, forms: Mapping[str, nn.Module], step: TrainingStep) -> None:
        """Acts when all gradients of the step are there and no parameter has changed.

        Args:
            forms: the delta's modules, by the key of their site: ``encoder.0.attn.q``.
            step: the update that follows.
        """
        del forms, step

    def after_update(self, forms: Mapping[str, nn.Module], step: TrainingStep) -> None:
        """Acts when the parameters have changed; the gradients are still there.

        Args:
            forms: the delta's modules, by the key of their site.
            step: the update that has been made.
        """
        del forms, step
