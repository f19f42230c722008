"""What a worker does with a cell, and whose turn it is; the same on every engine.

Workers know of each other through the run folder alone: a lock says that somebody has a cell, its
file that the cell has ended. So it does not matter who started them, or on which machine.
"""

import contextlib
import dataclasses
import logging
import time
from collections import deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from deltakit.compare.plan.plan import Cell, Plan, Training
from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.run.cell import MEASURE_UNITS, clean_up, failed, run_cell, train_here, units
from deltakit.compare.run.context import Workshop
from deltakit.compare.run.device_lock import Occupied
from deltakit.compare.run.distributed import follow
from deltakit.compare.run.progress import Lane, Silent
from deltakit.compare.run.train import TrainingFailed
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.run_folder import RunFolder, shared_deltas

CROWDED = (
    "Several cells trained at the same time on one device: their training times and energies are "
    "not those of a cell alone. All else was measured while nothing trained there."
)


class Fate(Enum):
    """What became of a cell that a worker turned to."""

    ENDED = "it has a result"
    TRAINED = "it is trained, and others trained on the device when it was to be measured"
    TAKEN = "another worker has it"


@dataclass(frozen=True, kw_only=True)
class Turn:
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
    """What the workers of one run have in common."""

    plan: Plan
    folder: RunFolder
    turns: tuple[Turn, ...]

    def ended(self, turn: Turn) -> bool:
        """Whether the cell has a result of this run, whoever it is from."""
        return self.folder.state(turn.cell.id) != turn.state

    def give_up(self, turn: Turn, reason: str) -> None:
        """Records that a cell came to nothing."""
        with self.folder.lock("cell", turn.cell.id).held():
            self.folder.write(turn.cell, failed(turn.cell, TrainingFailed(reason)), None)


class Failures(Enum):
    """What is done about cells that failed in an earlier run."""

    KEEP = "keep"
    RETRY = "retry"


def job_of(plan: Plan, folder: RunFolder, failures: Failures) -> Job:
    """What is left of a plan."""
    stages = [(cell, first) for cell, first in plan.stages() if _is_left(folder, cell, failures)]
    turns = (
        Turn(
            cell=cell,
            title=_title(plan, cell),
            units=_units(plan, folder, cell, first),
            state=folder.state(cell.id),
        )
        for cell, first in stages
    )
    return Job(plan=plan, folder=folder, turns=tuple(turns))


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
    return MEASURE_UNITS + sum(units(plan, training) for training in left)


def _title(plan: Plan, cell: Cell) -> str:
    base = f" on {cell.base}" if len(plan.request.bases) > 1 else ""
    seed = f", seed {cell.seed}" if plan.request.seeds > 1 else ""
    return cell.label + base + seed


# ------------------------------------------------------------------------------------- one cell


def attend(shop: Workshop, job: Job, turn: Turn) -> Fate:
    """Runs a cell and stores what comes of it, unless somebody else does."""
    folder = job.folder
    with folder.lock("cell", turn.cell.id).offered() as mine:
        if not mine:
            return Fate.TAKEN
        if job.ended(turn):
            return Fate.ENDED
        folder.sweep_cell(turn.cell.id)
        return _run(shop, turn)


def _run(shop: Workshop, turn: Turn) -> Fate:
    shop.progress.start(turn.title, turn.units)
    start = time.perf_counter()
    predictions: Predictions | None = None
    try:
        with shop.desk.reserved() if turn.trained else shop.desk.shared():
            result, predictions = run_cell(shop, turn.cell)
    except Occupied:
        shop.folder.note(CROWDED)
        shop.progress.finish("trained, to be measured when nothing else runs here", MEASURE_UNITS)
        return Fate.TRAINED
    except Exception as error:  # a failed cell is a result; KeyboardInterrupt is not caught
        result = failed(turn.cell, error)
    shop.folder.write(turn.cell, result, predictions)
    shop.progress.finish(said(result, f"in {time.perf_counter() - start:.0f} s"))
    clean_up()
    return Fate.ENDED


def said(result: CellResult, how: str) -> str:
    """What came of a cell, in a few words."""
    if result.score is None:
        return f"failed: {result.reason}"
    assert result.metric is not None
    return f"{METRICS.get(result.metric).said(result.score)} {how}"


def quiet() -> None:
    """The libraries' progress bars and load reports would tear the comparison's own display."""
    import datasets
    import transformers

    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()


def take_part(plan: Plan) -> None:
    """Trains what another process of this command leads, until it has come to the end."""

    def train(folder: Path, training: Training) -> None:
        shop = Workshop(plan=plan, folder=RunFolder(folder), progress=Silent())
        model = shop.base(training.task, training.seed, training.base)
        with contextlib.suppress(TrainingFailed):  # the leader records it
            train_here(shop, training, model)
        del model
        clean_up()

    quiet()
    follow(train)


# ----------------------------------------------------------------------------------- whose turn


class Turns:
    """The cells that are left, for whoever hands them to workers.

    New cells come first, those that only have to be measured after them, one at a time and alone.
    A cell that somebody else has is come back to: it ends there, or its worker dies.

    Args:
        job: what is to be done.
        lane: told of the cells that others finish.
    """

    def __init__(self, job: Job, lane: Lane) -> None:
        self._job, self._lane = job, lane
        self._new = deque(job.turns)
        self._trained: deque[Turn] = deque()
        self._taken: list[Turn] = []

    @property
    def over(self) -> bool:
        """Whether nobody has to be given a turn any more."""
        return not (self._new or self._trained or self._taken)

    def next(self, *, busy: int) -> Turn | None:
        """Whose turn it is; None where nobody's just now.

        Args:
            busy: how many are at work.
        """
        if self._new:
            return self._new.popleft()
        if self._trained and not busy:
            return self._trained.popleft()
        return self._come_back()

    def settle(self, turn: Turn, fate: Fate) -> None:
        """Takes note of what became of a cell."""
        if fate is Fate.TRAINED:
            self._trained.append(dataclasses.replace(turn, trained=True, units=MEASURE_UNITS))
        elif fate is Fate.TAKEN:
            self._taken.append(turn)

    def died(self, turn: Turn, how: str) -> None:
        """The worker of a cell died: another one tries, and after that nobody."""
        if turn.deaths:
            self._job.give_up(turn, f"its process ended twice without a result, with {how}")
            self._tell(turn)
        else:
            self._new.appendleft(dataclasses.replace(turn, deaths=1))

    def _come_back(self) -> Turn | None:
        for turn in list(self._taken):
            if self._job.ended(turn):
                self._taken.remove(turn)
                self._tell(turn)
            elif not self._job.folder.lock("cell", turn.cell.id).taken():
                self._taken.remove(turn)
                return turn
        return None

    def _tell(self, turn: Turn) -> None:
        result = self._job.folder.result(turn.cell.id)
        self._lane.start(turn.title, turn.units)
        self._lane.finish("gone" if result is None else said(result, "by another worker"))
