"""Cells on a Ray cluster: a task for each, in a fresh process, over the same run folder.

Its machines must share the file system that the run folder and the store of deltas are on.
"""

import dataclasses
import importlib.util
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit._imports import Parcel
from deltakit.compare.run.engines.base import POLL, Engine, register_engine
from deltakit.core.checks import check_whole
from deltakit.errors import InvalidConfig, MissingExtra

if TYPE_CHECKING:
    from deltakit.compare.run.progress import Lane, Progress
    from deltakit.compare.run.queue import Job, Outcome, WorkItem, WorkQueue

ENVIRONMENT = ("DELTAKIT_", "HF_")
"""How the variables begin that a task gets from the process that starts it."""


@register_engine("ray")
@dataclass(frozen=True, kw_only=True)
class Ray(Engine):
    """One cell at a time on each accelerator of the cluster, or on each machine without any.

    Attributes:
        workers: how many cells run at a time at most; None is as many as there is room for.
    """

    workers: int | None = None

    def __post_init__(self) -> None:
        if self.workers is not None:
            check_whole(self, workers=self.workers)

    @classmethod
    def of(cls, workers: int | None) -> "Ray":
        if importlib.util.find_spec("ray") is None:
            raise MissingExtra(
                "--engine ray needs the package 'ray', which is not installed. From a checkout: "
                'pip install -e ".[ray]". Or take --engine processes.'
            )
        return cls(workers=workers)

    def run(self, job: "Job", progress: "Progress") -> None:
        import ray

        from deltakit.compare.run.queue import WorkQueue
        from deltakit.compare.store.run_folder import RunFolder

        if not ray.is_initialized():
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="warning")
        room, needs = _room(ray.nodes())
        task = ray.remote(max_calls=1, max_retries=0, **needs)(_work)
        job = dataclasses.replace(job, folder=RunFolder(job.folder.path.resolve()))
        common = ray.put(Parcel.pack(job, job.plan.imports))
        lanes = [progress.lane(number) for number in range(min(room, self.workers or room))]
        items = WorkQueue(job, progress.lane(len(lanes)))
        running: dict[Any, tuple[WorkItem, Lane]] = {}
        try:
            while not items.over or running:
                while lanes and (item := items.next(busy=len(running))) is not None:
                    lanes[-1].start(item.title, item.units)
                    running[task.remote(common, Parcel.pack(item, ()), _environment())] = (
                        item,
                        lanes.pop(),
                    )
                for reference in _ended(ray, list(running)):
                    item, lane = running.pop(reference)
                    _settle(ray, reference, item, items, lane)
                    lanes.append(lane)
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _room(nodes: list[dict[str, Any]]) -> tuple[int, dict[str, float]]:
    """How many cells the cluster has room for, and what each takes of it.

    A machine that trains several at a time could measure none of them meanwhile.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    accelerators = int(sum(each.get("GPU", 0) for each in alive))
    if accelerators:
        return accelerators, {"num_gpus": 1}
    cores = min(each.get("CPU", 1) for each in alive)
    return sum(int(each.get("CPU", 1) // cores) for each in alive), {"num_cpus": cores}


def _environment() -> dict[str, str]:
    own = {key: value for key, value in os.environ.items() if key.startswith(ENVIRONMENT)}
    return {**own, "PWD": str(Path.cwd())}


def _ended(ray: Any, running: list[Any]) -> list[Any]:
    """The tasks that have ended since, or none after a while."""
    if not running:
        time.sleep(POLL)
        return []
    ended: list[Any] = ray.wait(running, num_returns=1, timeout=POLL)[0]
    return ended


def _settle(ray: Any, reference: Any, item: "WorkItem", items: "WorkQueue", lane: "Lane") -> None:
    """Takes note of what became of a task."""
    try:
        outcome, told = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.as_instanceof_cause() from None
    except ray.exceptions.RayError as error:
        how = type(error).__name__
        lane.finish(f"its process died with {how}", item.units)
        items.died(item, how)
    else:
        lane.finish(*told)
        items.record_outcome(item, outcome)


# ---------------------------------------------------------------------------- in the new process


class ProgressSink:
    """Keeps what is told last; a cluster has no line to the display."""

    def __init__(self, units: int) -> None:
        self.last = ("another worker has it", units)

    def start(self, title: str, units: int) -> None:
        """The one who asked for the task has said so."""

    def note(self, text: str) -> None:
        """Not shown."""

    def advance(self, units: int = 1) -> None:
        """Not shown."""

    def finish(self, outcome: str, left: int = 0) -> None:
        self.last = (outcome, left)


def _work(
    its_job: Parcel, its_item: Parcel, environment: dict[str, str]
) -> "tuple[Outcome, tuple[str, int]]":
    """One cell, from beginning to end."""
    os.environ.update(environment)
    from deltakit.compare.run.context import RunContext
    from deltakit.compare.run.queue import process, silence_libraries

    if Path(environment["PWD"]).is_dir():
        os.chdir(environment["PWD"])  # a model, a delta or a module may be named from there
    job, item = its_job.unpack(), its_item.unpack()
    if not job.folder.path.is_dir():
        raise InvalidConfig(
            f"a machine of the cluster does not see the run folder {job.folder.path}. Choose one "
            "with --out that all of them share."
        )
    silence_libraries()
    record = ProgressSink(item.units)
    context = RunContext(plan=job.plan, folder=job.folder, progress=record)
    return process(context, job, item), record.last
