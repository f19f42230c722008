"""The work queue of a run, and the processing of one cell; the same on every engine.

Workers share the run folder and nothing else: a lock means that a worker holds a cell, a file that
the cell has ended. So workers may be started by different commands, and on different machines.
"""

import contextlib
import dataclasses
import logging
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from deltakit._files import unwritable
from deltakit.compare.plan.plan import Cell, Plan, Training
from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.run.cell import (
    MEASURE_UNITS,
    failed,
    free_memory,
    run_cell,
    step_count,
    train_now,
)
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.device_lock import DeviceBusy
from deltakit.compare.run.distributed import run_follower
from deltakit.compare.run.failures import Failures
from deltakit.compare.run.progress import Lane, Silent
from deltakit.compare.run.train import TrainingFailed
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.run_folder import RunFolder, shared_deltas

CROWDED = (
    "Several cells trained at the same time on one device: their training times and energies are "
    "not those of a cell alone. All else was measured while nothing trained there."
)


class Outcome(Enum):
    """The outcome of a worker's attempt at a cell."""

    DONE = "it has a result"
    TRAINED_ONLY = "it is trained, and others trained on the device when it was to be measured"
    LOCKED_ELSEWHERE = "another worker has it"


@dataclass(frozen=True, kw_only=True)
class WorkItem:
    """A cell that has to be run.

    Attributes:
        cell: which.
        title: what people read.
        units: how long it takes, in training steps.
        state: what the folder held of it when the run started; once that changes it has ended.
        trained: whether only measuring is left.
        deaths: how many workers died of it.
    """

    cell: Cell
    title: str
    units: int
    state: int | None
    trained: bool = False
    deaths: int = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """The plan, the folder and the cells that the workers of one run share."""

    plan: Plan
    folder: RunFolder
    items: tuple[WorkItem, ...]

    def ended(self, item: WorkItem) -> bool:
        """True if the cell has a result of this run, from any worker."""
        return self.folder.state(item.cell.id) != item.state

    def give_up(self, item: WorkItem, reason: str) -> None:
        """Records that a cell failed."""
        with self.folder.lock("cell", item.cell.id).held():
            self.folder.write(item.cell, failed(item.cell, TrainingFailed(reason)), None)


def job_of(plan: Plan, folder: RunFolder, failures: Failures) -> Job:
    """The cells of a plan that are left to run."""
    stages = [(cell, first) for cell, first in plan.stages() if _is_left(folder, cell, failures)]
    items = (
        WorkItem(
            cell=cell,
            title=_title(plan, cell),
            units=_units(plan, folder, cell, first),
            state=folder.state(cell.id),
        )
        for cell, first in stages
    )
    return Job(plan=plan, folder=folder, items=tuple(items))


def _is_left(folder: RunFolder, cell: Cell, failures: Failures) -> bool:
    result = folder.result(cell.id)
    return result is None or (result.status == "failed" and failures is Failures.RETRY)


def _units(plan: Plan, folder: RunFolder, cell: Cell, first: tuple[Training, ...]) -> int:
    """Steps that a cell takes, those of trainings that earlier runs have stored left out."""
    if cell.training is None:
        return 1
    stores = (folder.deltas(), shared_deltas())
    left = (
        training
        for training in (*first, cell.training)
        if folder.trial(training) is None
        and all(store.record(training) is None for store in stores)
    )
    return MEASURE_UNITS + sum(step_count(plan, training) for training in left)


def _title(plan: Plan, cell: Cell) -> str:
    base = f" on {cell.base}" if len(plan.request.bases) > 1 else ""
    seed = f", seed {cell.seed}" if plan.request.seeds > 1 else ""
    return cell.label + base + seed


# ------------------------------------------------------------------------------------- one cell


def process(context: RunContext, job: Job, item: WorkItem) -> Outcome:
    """Runs a cell and stores its result, unless another worker holds it."""
    folder = job.folder
    with folder.lock("cell", item.cell.id).offered() as mine:
        if not mine:
            return Outcome.LOCKED_ELSEWHERE
        if job.ended(item):
            return Outcome.DONE
        folder.sweep_cell(item.cell.id)
        return _run(context, item)


def _run(context: RunContext, item: WorkItem) -> Outcome:
    context.progress.start(item.title, item.units)
    start = time.perf_counter()
    predictions: Predictions | None = None
    try:
        with context.device_lock.exclusive() if item.trained else context.device_lock.shared():
            result, predictions = run_cell(context, item.cell)
    except DeviceBusy:
        context.folder.note(CROWDED)
        context.progress.finish(
            "trained, to be measured when nothing else runs here", MEASURE_UNITS
        )
        return Outcome.TRAINED_ONLY
    except Exception as error:  # a failed cell is a result; KeyboardInterrupt is not caught
        if (full := unwritable(error)) is not None:  # no cell of this run could be stored
            raise full from error
        result = failed(item.cell, error)
    context.folder.write(item.cell, result, predictions)
    context.progress.finish(describe_result(result, f"in {time.perf_counter() - start:.0f} s"))
    free_memory()
    return Outcome.DONE


def describe_result(result: CellResult, how: str) -> str:
    """The result of a cell in a few words."""
    if result.score is None:
        return f"failed: {result.reason}"
    assert result.metric is not None
    return f"{METRICS.get(result.metric).format(result.score)} {how}"


def silence_libraries() -> None:
    """The libraries' progress bars and load reports would tear the comparison's own display."""
    import datasets
    import transformers

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def follow(plan: Plan) -> None:
    """Takes part in the trainings of this command's first process, until it ends."""

    def train(folder: Path, training: Training) -> None:
        context = RunContext(plan=plan, folder=RunFolder(folder), progress=Silent())
        model = context.base(training.task, training.seed, training.base)
        with contextlib.suppress(TrainingFailed):  # the leader records it
            train_now(context, training, model)
        del model
        free_memory()

    silence_libraries()
    run_follower(train)


# ----------------------------------------------------------------------------------- whose turn


class WorkQueue:
    """The cells that are left, for an engine that hands them to workers.

    New cells come first, those that only have to be measured after them, one at a time and alone.
    A cell that another worker holds is tried again later: it ends there, or its worker dies.

    Args:
        job: the work.
        lane: shows the cells that other workers finish.
    """

    def __init__(self, job: Job, lane: Lane) -> None:
        self._job, self._lane = job, lane
        self._new = deque(job.items)
        self._trained: deque[WorkItem] = deque()
        self._taken: list[WorkItem] = []

    @property
    def over(self) -> bool:
        """True if all cells have ended."""
        return not (self._new or self._trained or self._taken)

    def next(self, *, busy: int) -> WorkItem | None:
        """The next cell; None where every cell that is left has to wait.

        Args:
            busy: the number of workers at work.
        """
        if self._new:
            return self._new.popleft()
        if self._trained and not busy:
            return self._trained.popleft()
        return self._come_back()

    def record_outcome(self, item: WorkItem, outcome: Outcome) -> None:
        """Takes note of what became of a cell."""
        if outcome is Outcome.TRAINED_ONLY:
            self._trained.append(dataclasses.replace(item, trained=True, units=MEASURE_UNITS))
        elif outcome is Outcome.LOCKED_ELSEWHERE:
            self._taken.append(item)

    def died(self, item: WorkItem, how: str) -> None:
        """Puts a cell back whose worker died, once; after that the cell has failed."""
        if item.deaths:
            self._job.give_up(item, f"its process ended twice without a result, with {how}")
            self._tell(item)
        else:
            self._new.appendleft(dataclasses.replace(item, deaths=1))

    def _come_back(self) -> WorkItem | None:
        for item in list(self._taken):
            if self._job.ended(item):
                self._taken.remove(item)
                self._tell(item)
            elif not self._job.folder.lock("cell", item.cell.id).taken():
                self._taken.remove(item)
                return item
        return None

    def _tell(self, item: WorkItem) -> None:
        result = self._job.folder.result(item.cell.id)
        self._lane.start(item.title, item.units)
        self._lane.finish(
            "gone" if result is None else describe_result(result, "by another worker")
        )
