"""Data-parallel training of a single cell, under ``accelerate launch`` or ``torchrun``.

They start the same command several times. The first process leads: it alone decides, evaluates,
measures and writes. The others follow: they read the same plan and take part in each training.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit.compare.plan.plan import Training
from deltakit.compare.plan.request import Budget
from deltakit.errors import InvalidConfig
from deltakit.models.source import device

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from deltakit.compare.store.run_folder import RunFolder

LONGEST = timedelta(days=7)
"""How long a follower waits for the next training: others may be evaluated or measured first."""


def world_size() -> int:
    """The number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_follower() -> bool:
    """True if this process only takes part in trainings."""
    return world_size() > 1 and os.environ.get("RANK", "0") != "0"


def per_rank_batch_size(budget: Budget) -> int:
    """Examples of a step that fall to one process.

    Raises:
        InvalidConfig: they cannot be divided evenly.
    """
    part, rest = divmod(budget.batch_size, world_size())
    if rest or not part:
        raise InvalidConfig(
            f"--batch-size {budget.batch_size} cannot be divided among {world_size()} "
            "processes. Give a "
            f"multiple of {world_size()}, or start another number of them."
        )
    return part


class SingleProcess:
    """A process that trains alone."""

    def broadcast(self, training: Training) -> None:
        """Does nothing: no other process takes part."""

    def shutdown(self) -> None:
        """Does nothing: no other process takes part."""


@dataclass(frozen=True, kw_only=True)
class RankZero(SingleProcess):
    """The first of several processes; it sends the others each training."""

    folder: Path
    group: "ProcessGroup" = field(default_factory=lambda: _group())

    def broadcast(self, training: Training) -> None:
        """Sends a training to the other processes, which take part in it."""
        _broadcast((self.folder, training), self.group)

    def shutdown(self) -> None:
        """Ends the other processes' loop."""
        _broadcast(None, self.group)


def process_group_of(folder: "RunFolder") -> SingleProcess:
    """The processes that train with this one, which is not a follower."""
    if world_size() == 1:
        return SingleProcess()
    folder.note(
        f"Cells were trained by {world_size()} processes together, which "
        "divided each step's examples: "
        "their batches are not composed as those of one process are."
    )
    return RankZero(folder=folder.path)


def run_follower(train: Callable[[Path, Training], None]) -> None:
    """Takes part in every training that the first process sends, until it shuts down.

    Args:
        train: trains, given the run folder; it may raise `TrainingFailed`, as it does there.
    """
    group = _group()
    while (order := _broadcast(None, group)) is not None:
        train(*order)


def _group() -> "ProcessGroup":
    """A group for messages, which waits without work and does not carry gradients."""
    import torch.distributed as dist
    from accelerate import PartialState

    # It decides what the gradients travel over, and on the device of each process.
    PartialState(cpu=device().type == "cpu")
    group: ProcessGroup = dist.new_group(backend="gloo", timeout=LONGEST)
    return group


def _broadcast(order: Any, group: "ProcessGroup") -> Any:
    """The message of the first process."""
    import torch.distributed as dist

    said = [order]
    dist.broadcast_object_list(said, src=0, group=group)
    return said[0]
