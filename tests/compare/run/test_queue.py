"""What a worker does with a cell, and whose turn it is."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltakit.compare.api import run_plan
from deltakit.compare.plan.plan import Plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import CellResult
from deltakit.compare.run import cell
from deltakit.compare.run import queue as work
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.description import describe
from deltakit.compare.run.device_lock import DeviceLock
from deltakit.compare.run.failures import Failures
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.queue import Job, Outcome, WorkItem, WorkQueue, job_of, process
from deltakit.compare.store.run_folder import RunFolder, open_run


@pytest.fixture
def plan(asked: Callable[..., Any]) -> Plan:
    return build_plan(asked("lora"))


@pytest.fixture
def folder(plan: Plan, tmp_path: Path) -> RunFolder:
    return open_run(plan, tmp_path / "run", describe(plan))


@pytest.fixture
def job(plan: Plan, folder: RunFolder) -> Job:
    return job_of(plan, folder, Failures.KEEP)


def stored(folder: RunFolder, item: WorkItem, **changes: Any) -> None:
    """A result as another worker writes it."""
    each = item.cell
    result = CellResult(
        method=each.label, base="fp32", task="two", seed=0, metric="accuracy", **changes
    )
    folder.write(each, result, None)


def shop_of(job: Job, tmp_path: Path) -> RunContext:
    device_lock = DeviceLock(tmp_path / "desk")
    return RunContext(plan=job.plan, folder=job.folder, progress=Silent(), device_lock=device_lock)


# --------------------------------------------------------------------------------- what is left


def test_failed_cells_are_left_only_on_request(plan: Plan, job: Job) -> None:
    first, second, *_ = job.items
    stored(job.folder, first, score=0.5)
    stored(job.folder, second, status="failed", reason="no room")
    kept = job_of(plan, job.folder, Failures.KEEP)
    again = job_of(plan, job.folder, Failures.RETRY)
    assert [item.title for item in kept.items] == ["full", "lora"]
    assert [item.title for item in again.items] == ["head", "full", "lora"]
    assert not again.ended(again.items[0]), "a result of an earlier run is not this one's"
    stored(job.folder, second, status="failed", reason="no room")
    path = job.folder.cell_path(second.cell.id)  # the clock of some file systems is coarse
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
    assert again.ended(again.items[0]), "who retries does so once, whoever it is"


# ------------------------------------------------------------------------------------- one cell


def test_a_cell_that_somebody_has_is_left_alone(job: Job, tmp_path: Path) -> None:
    item = job.items[0]
    with job.folder.lock("cell", item.cell.id).held():
        assert process(shop_of(job, tmp_path), job, item) is Outcome.LOCKED_ELSEWHERE
    assert job.folder.result(item.cell.id) is None
    stored(job.folder, item, score=0.25)
    assert process(shop_of(job, tmp_path), job, item) is Outcome.DONE
    result = job.folder.result(item.cell.id)
    assert result is not None and result.score == 0.25, "it was not run again"


def test_a_cell_that_cannot_be_measured_is_trained_once(
    job: Job, tmp_path: Path, trainings: Any
) -> None:
    context, item = shop_of(job, tmp_path), job.items[-1]
    with DeviceLock(tmp_path / "desk").shared():
        assert process(context, job, item) is Outcome.TRAINED_ONLY
    assert trainings.count == 1 and job.folder.result(item.cell.id) is None
    *_, resumed = job_of(job.plan, job.folder, Failures.KEEP).items
    assert item.units > resumed.units == work.MEASURE_UNITS, "what is stored takes no time"
    assert job.folder.run_record().notes[-1] == work.CROWDED
    items = WorkQueue(job, Silent())
    items.record_outcome(item, Outcome.TRAINED_ONLY)
    *_, last = (items.next(busy=0) for _ in range(5))
    assert last is not None and last.cell == item.cell and last.trained
    assert process(context, job, last) is Outcome.DONE
    assert trainings.count == 1
    result = job.folder.result(item.cell.id)
    assert result is not None and result.status == "done" and result.machine


def test_what_a_killed_worker_left_of_a_cell_is_removed(job: Job, tmp_path: Path) -> None:
    item, other = job.items[:2]
    cells = job.folder.path / "cells"
    cells.mkdir()
    left = [cells / f".{item.cell.id}.{end}" for end in ("json.abcd1234.json", "search.json.abc")]
    living = cells / f".{other.cell.id}.json.abcd1234.json"
    for path in (*left, living):
        path.write_text("{")
    assert process(shop_of(job, tmp_path), job, item) is Outcome.DONE
    assert [path.exists() for path in left] == [False, True], "only what a writer calls its files"
    assert living.exists(), "somebody may be writing it"


# ----------------------------------------------------------------------------------- whose turn


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def finish(self, outcome: str, left: int = 0) -> None:
        self.lines.append(outcome)


def test_new_cells_come_first_then_those_to_measure_alone(job: Job) -> None:
    items = WorkQueue(job, Silent())
    first = items.next(busy=0)
    assert first == job.items[0]
    items.record_outcome(first, Outcome.TRAINED_ONLY)
    rest = [items.next(busy=1) for _ in range(4)]
    assert rest == [*job.items[1:], None], "nobody is measured while others work"
    measured = items.next(busy=0)
    assert measured is not None and (measured.cell, measured.trained) == (first.cell, True)
    assert items.over


def test_a_taken_cell_is_come_back_to(job: Job) -> None:
    heard = Heard()
    items = WorkQueue(job, heard)
    taken = [items.next(busy=0) for _ in job.items]
    for item in taken:
        assert item is not None
        items.record_outcome(
            item, Outcome.LOCKED_ELSEWHERE if item in job.items[:2] else Outcome.DONE
        )
    one, two = job.items[:2]
    with job.folder.lock("cell", one.cell.id).held(), job.folder.lock("cell", two.cell.id).held():
        assert items.next(busy=0) is None and not items.over
        stored(job.folder, one, score=0.75)
        assert items.next(busy=0) is None
        assert heard.lines == ["75.0 % by another worker"]
    assert items.next(busy=0) == two, "whoever had it is gone"
    assert items.over


def test_a_cell_that_two_workers_died_of_is_given_up(job: Job) -> None:
    heard = Heard()
    items = WorkQueue(job, heard)
    item = items.next(busy=0)
    assert item is not None
    items.died(item, "signal 9")
    again = items.next(busy=0)
    assert again is not None and again.cell == item.cell
    items.died(again, "signal 9")
    assert items.next(busy=0) == job.items[1]
    result = job.folder.result(item.cell.id)
    assert result is not None
    assert result.reason == "its process ended twice without a result, with signal 9"
    assert heard.lines == [f"failed: {result.reason}"]


def test_trials_that_others_do_are_waited_for(
    asked: Callable[..., Any], tmp_path: Path, trainings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = build_plan(asked("lora", trials=2, lr=None))
    order: list[float] = []
    tried = cell._run_trial
    low, high = plan.trials(plan.cells[-1].training)
    folder = RunFolder(tmp_path / "run")
    held = folder.trial_lock(low).held()
    held.__enter__()

    def let_go(context: Any, training: Any) -> Any:
        if training == high:
            held.__exit__(None, None, None)
        return tried(context, training)

    monkeypatch.setattr(cell, "_run_trial", lambda s, t: order.append(t.lr) or let_go(s, t))
    ended = run_plan(plan, folder.path)
    assert not ended.failures and trainings.count == 9
    assert order[-2:] == [high.lr, low.lr], "the free one first"


@pytest.mark.parametrize("words", [None, "I/O error: No space left on device (os error 28)"])
def test_a_full_disk_ends_the_run_and_leaves_the_cell_to_do(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str | None
) -> None:
    def full(*_: object) -> None:
        if words is not None:
            raise RuntimeError(words)  # as safetensors tells it
        raise OSError(errno.ENOSPC, "No space left on device", "delta.safetensors")

    monkeypatch.setattr(work, "run_cell", full)
    item = job.items[0]
    with pytest.raises(OSError, match="No space left on device"):
        process(shop_of(job, tmp_path), job, item)
    assert job.folder.result(item.cell.id) is None
