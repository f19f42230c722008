"""One cell after the other, in this process."""

import time
from typing import TYPE_CHECKING, ClassVar

from deltakit.compare.run.engines.base import POLL, Engine, register_engine
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from deltakit.compare.run.progress import Progress
    from deltakit.compare.run.queue import Job


@register_engine
class Local(Engine):
    """Everything in the process that asks for it."""

    name: ClassVar[str] = "local"

    @classmethod
    def of(cls, workers: int | None) -> "Local":
        if workers not in (None, 1):
            raise InvalidConfig(
                f"--engine local has one worker, not {workers}. For more take --engine processes."
            )
        return cls()

    def run(self, job: "Job", progress: "Progress") -> None:
        from deltakit.compare.run.context import Workshop
        from deltakit.compare.run.distributed import crew_of
        from deltakit.compare.run.queue import Turns, attend

        crew = crew_of(job.folder)
        shop = Workshop(plan=job.plan, folder=job.folder, progress=progress.lane(0), crew=crew)
        turns = Turns(job, progress.lane(1))
        while not turns.over:
            turn = turns.next(busy=0)
            if turn is None:
                time.sleep(POLL)
            else:
                turns.settle(turn, attend(shop, job, turn))
        crew.dismiss()
