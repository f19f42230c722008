"""Starts from data: what a form takes from a few batches before it is trained.

The mask of a pruned delta, or directions along which activations vary, are examples. A form says
that it has such a start, and what computes it. `deltakit.prepare` runs the passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

    from deltakit.core.delta import Delta


BATCHES = 8
"""The batches that a start takes, unless it says another number."""


class DataPass(ABC):
    """A model's passes over the batches that it was given, as often as a start needs them.

    The model is in evaluation: nothing is dropped or drawn. The loss L is the mean of the batches'.
    """

    @abstractmethod
    def forward(self) -> None:
        """Runs all batches without gradients; the forms are called with their inputs."""

    @abstractmethod
    def gradients(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """∂L/∂θ for each tensor θ, of its shape; zero where L does not depend on it."""

    @abstractmethod
    def hessian_product(
        self, tensors: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """H v for each tensor, H the Hessian of L over all of them and v the `vectors`."""


class DataStart(ABC):
    """The computation of a start, for all forms of the active deltas that have an equal one."""

    @property
    def batches(self) -> int:
        """The number of batches that it takes at most, the first ones; `BATCHES` by default."""
        return BATCHES

    @abstractmethod
    def give(self, forms: Sequence[Delta], data: DataPass) -> None:
        """Starts the forms, in place."""


class StartsFromData(ABC):  # noqa: B024
    """A form that may have a start from data.

    Until it has it, it refuses to be trained, and it is not saved. A form that was loaded has it.

    Attributes:
        data_start: what computes the start; None where there is none to wait for.
    """

    data_start: DataStart | None = None

    def end_wait(self) -> None:
        """Waits no longer: the start was given, or loaded, or any will do."""
        self.data_start = None


def awaiting(modules: Iterable[nn.Module]) -> list[StartsFromData]:
    """The forms among modules and their children that wait for a start."""
    inside = dict.fromkeys(each for module in modules for each in module.modules())
    found = [each for each in inside if isinstance(each, StartsFromData)]
    return [form for form in found if form.data_start is not None]


def take_as_started(modules: Iterable[nn.Module]) -> None:
    """Makes the forms wait no longer: they were loaded, or any start will do."""
    for form in awaiting(modules):
        form.end_wait()
