"""Work that waits for no other run on the device: a choice has to end in time."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deltakit.compare.plan.plan import Plan
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.device_lock import UnwaitingDeviceLock, unwaiting_lock_for
from deltakit.compare.run.engines import Local
from deltakit.compare.run.progress import Silent
from deltakit.compare.store.run_folder import RunFolder
from deltakit.models.source import device

if TYPE_CHECKING:
    from deltakit.compare.run.progress import Progress
    from deltakit.compare.run.queue import Job

CROWDED = (
    "Another run computed on the device while finalists were measured: their times are less exact."
)


class Unwaiting(Local):
    """One cell after the other, measured whether other runs compute on the device or not."""

    @cached_property
    def lock(self) -> UnwaitingDeviceLock:
        """The lock of the device."""
        return unwaiting_lock_for(device())

    def device_lock(self) -> UnwaitingDeviceLock:
        """The lock that the cells take."""
        return self.lock

    def run(self, job: Job, progress: Progress) -> None:
        """Runs every cell, and notes where times are less exact."""
        super().run(job, progress)
        if self.lock.crowded:
            job.folder.note(CROWDED)


def unwaiting_context(plan: Plan, folder: Path) -> RunContext:
    """The context of a plan in a run folder."""
    return RunContext(
        plan=plan,
        folder=RunFolder(folder),
        progress=Silent(),
        device_lock=unwaiting_lock_for(device()),
    )
