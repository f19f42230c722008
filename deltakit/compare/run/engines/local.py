"""One cell after the other, in this process."""

import time
from typing import TYPE_CHECKING

from deltakit.compare.run.engines.base import POLL, Engine, register_engine
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from deltakit.compare.run.device_lock import DeviceLock
    from deltakit.compare.run.progress import Progress
    from deltakit.compare.run.queue import Job


@register_engine("local")
class Local(Engine):
    """All cells in the calling process."""

    @classmethod
    def of(cls, workers: int | None) -> "Local":
        if workers not in (None, 1):
            raise InvalidConfig(
                f"--engine local has one worker, not {workers}. For more take --engine processes."
            )
        return cls()

    def device_lock(self) -> "DeviceLock":
        """The lock that the cells take."""
        from deltakit.compare.run.device_lock import device_lock_for
        from deltakit.models.source import device

        return device_lock_for(device())

    def run(self, job: "Job", progress: "Progress") -> None:
        from deltakit.compare.run.context import RunContext
        from deltakit.compare.run.distributed import process_group_of
        from deltakit.compare.run.queue import WorkQueue, process

        crew = process_group_of(job.folder)
        context = RunContext(
            plan=job.plan,
            folder=job.folder,
            progress=progress.lane(0),
            device_lock=self.device_lock(),
            process_group=crew,
        )
        items = WorkQueue(job, progress.lane(1))
        while not items.over:
            item = items.next(busy=0)
            if item is None:
                time.sleep(POLL)
            else:
                items.record_outcome(item, process(context, job, item))
        crew.shutdown()
