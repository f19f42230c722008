"""The finals: a few candidates, trained afresh with fresh seeds, as a comparison trains them.

They are chosen on the validation split. The test split is read once, and decides nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from deltakit.choose.bench import Bench
from deltakit.choose.candidates import Candidate
from deltakit.choose.clock import Clock
from deltakit.choose.constraints import Facts
from deltakit.choose.decide.arms import Reading
from deltakit.choose.decide.finals_size import Depth
from deltakit.choose.decide.finals_time import ESSENTIAL, FinalsTime
from deltakit.choose.journal import Journal
from deltakit.choose.unwaiting import Unwaiting, unwaiting_context
from deltakit.compare.api import run_plan
from deltakit.compare.plan.lr_search import SearchFailed
from deltakit.compare.plan.plan import CONSTANT, Cell, Plan, with_protocol
from deltakit.compare.records.protocol import Protocol
from deltakit.compare.records.result import Predictions
from deltakit.compare.results import Results
from deltakit.compare.run.cell import get_trained, with_chosen_rate
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.description import describe
from deltakit.compare.run.train import TrainingFailed
from deltakit.compare.store.run_folder import RUN, RunFolder, open_run
from deltakit.core.method import Role

RowKey = tuple[str, str]
"""A row of the finals: its label and its base."""

REFINED = {1: (1.0,), 2: (1.0, 1.7), 3: (0.6, 1.0, 1.7)}
"""Rates that the finals try, over that of the bracket. Their schedule falls, so more is tried."""

PROTOCOL = Protocol(
    step_repeats=3,
    latency_repeats_b1=12,
    latency_repeats_b8=4,
    shape_repeats=1,
    handling_repeats=1,
    inspected_texts=2,
    inspected_repeats=1,
    curve_points=0,
    general_passages=0,
)
"""The measuring of finalists: a choice has less time than a comparison."""


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """A candidate with the rate that the bracket found."""

    candidate: Candidate
    lr: float


def finals_plan(
    bench: Bench,
    finalists: Sequence[Finalist],
    floor: Finalist,
    depth: Depth,
    steps: int,
    first_seed: int,
) -> Plan:
    """The comparison of the finalists with the floor and the constant prediction."""
    plan = bench.plan
    budget = dataclasses.replace(plan.request.budget, epochs=epochs_of(bench, steps))
    first = plan.cells[0]
    assert first.label == CONSTANT
    seeds = range(first_seed, first_seed + depth.seeds)
    cells = [dataclasses.replace(first, seed=seed) for seed in seeds]
    for each in (floor, *finalists):
        rates = tuple(float(f"{each.lr * factor:.2g}") for factor in REFINED[depth.rates])
        for seed in seeds:
            training = bench.training(each.candidate, rates, seed)
            training = dataclasses.replace(training, budget=budget)
            cells.append(
                dataclasses.replace(
                    first,
                    label=each.candidate.label,
                    base=each.candidate.base.name,
                    seed=seed,
                    training=training,
                )
            )
    labels = tuple(dict.fromkeys(each.candidate.label for each in finalists))
    request = dataclasses.replace(
        plan.request,
        methods=labels,
        budget=budget,
        seeds=depth.seeds,
    )
    finals = dataclasses.replace(
        plan, request=request, cells=tuple(cells), roles={Role.FLOOR.value: floor.candidate.label}
    )
    return with_protocol(finals, PROTOCOL)


def epochs_of(bench: Bench, steps: int) -> float:
    """The passes over the training examples in a number of steps; four digits."""
    size = bench.plan.request.budget.batch_size
    batches = -(-len(bench.plan.task.train) // size)
    return float(f"{steps / batches:.4g}")


def steps_of(plan: Plan) -> int:
    """The steps of one training of the finals; the inverse of `epochs_of`."""
    budget = plan.request.budget
    return round(budget.epochs * -(-len(plan.task.train) // budget.batch_size))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The finalists after their trainings.

    Attributes:
        validation: predictions of each one's seeds on the validation split, by label and base.
        rates: the rate of each.
        seconds: what the trainings took.
        failed: those that could not be trained, with the reason.
        dropped: those that there was no time to train.
    """

    validation: Mapping[RowKey, tuple[Predictions, ...]]
    rates: Mapping[RowKey, float]
    seconds: float
    failed: Mapping[RowKey, str]
    dropped: tuple[RowKey, ...] = ()


@dataclass(kw_only=True)
class FinalsRun:
    """The trainings of the finals, one after the other, within the time that is left.

    Attributes:
        plan: all that is wanted.
        context: data as tokens, and the folder.
        journal: what is stored.
        clock: what times are read from.
        time: what is left.
    """

    plan: Plan
    context: RunContext
    journal: Journal
    clock: Clock
    time: FinalsTime
    made: dict[RowKey, list[Predictions]] = field(default_factory=dict)
    failed: dict[RowKey, str] = field(default_factory=dict)

    @cached_property
    def cells(self) -> dict[RowKey, dict[int, Cell]]:
        """The cells that are trained, by row and seed."""
        found: dict[RowKey, dict[int, Cell]] = {}
        for cell in self.plan.cells:
            if cell.training is not None:
                found.setdefault((cell.label, cell.base), {})[cell.seed] = cell
        return found

    def run(self) -> tuple[Plan, Trained]:
        """Trains what there is time for. Returns the plan of that, and what came of it."""
        first, *later = sorted({cell.seed for cell in self.plan.cells})
        rows = self._first_seed(first)
        seeds = [first]
        for seed in later:
            if not self.time.has_room_for_seed(len(rows), len(seeds)):
                break
            for row in rows:
                self._train(row, seed)
            seeds.append(seed)
        return cut_plan(self.plan, rows, seeds), self._trained(rows)

    def _first_seed(self, seed: int) -> list[RowKey]:
        """Trains the first seed of the rows that there is time for, the best first."""
        rows: list[RowKey] = []
        for row in self.cells:
            trainings = trainings_of(self.cells[row][seed], first=True)
            if len(rows) >= ESSENTIAL and not self.time.has_room_for_row(len(rows), trainings):
                break
            self._train(row, seed, first=True)
            rows.append(row)
        return rows

    def _train(self, row: RowKey, seed: int, *, first: bool = False) -> None:
        """Trains a cell, or takes it from the journal; a row that has failed is left alone."""
        if row in self.failed:
            return
        cell, name = self.cells[row][seed], f"final-{'-'.join(row)}-{seed}"
        reading = self.journal.reading(name, 0)
        if reading is None:
            with self.context.device_lock.shared():
                reading = _trained(self.context, cell, self.clock)
            self.journal.keep(name, 0, reading)
        self.time.took(reading.seconds, trainings_of(cell, first=first))
        if reading.predictions is None:
            self.failed[row] = reading.reason or "no reason was recorded"
        else:
            self.made.setdefault(row, []).append(reading.predictions)

    def _trained(self, rows: Sequence[RowKey]) -> Trained:
        done = {row: tuple(self.made[row]) for row in rows if row not in self.failed}
        return Trained(
            validation=done,
            rates={row: self._rate(row) for row in done},
            seconds=self.time.spent,
            failed=self.failed,
            dropped=tuple(row for row in self.cells if row not in rows),
        )

    def _rate(self, row: RowKey) -> float:
        training = next(iter(self.cells[row].values())).training
        assert training is not None
        return with_chosen_rate(self.context, training)[0].lr


def trainings_of(cell: Cell, *, first: bool) -> int:
    """The trainings of a cell; its row's first seed finds the rate, with one for each."""
    assert cell.training is not None
    rates = len(cell.training.rates)
    return 1 + rates if first and rates > 1 else 1


def cut_plan(plan: Plan, rows: Collection[RowKey], seeds: Collection[int]) -> Plan:
    """The plan of these rows and seeds alone, with the constant prediction."""
    cells = tuple(
        cell
        for cell in plan.cells
        if cell.seed in seeds and (cell.training is None or (cell.label, cell.base) in rows)
    )
    kept = {label for label, _ in rows}
    methods = tuple(each for each in plan.request.methods if each in kept)
    request = dataclasses.replace(plan.request, methods=methods, seeds=len(seeds))
    return dataclasses.replace(plan, request=request, cells=cells)


def train_finals(
    plan: Plan, journal: Journal, clock: Clock, time: FinalsTime
) -> tuple[Plan, Trained]:
    """Trains what is not trained yet of the finals, and predicts the validation split.

    Where they take longer than planned, seeds after the first and the last finalists are left out.
    """
    path = journal.path / "finals"
    open_finals(plan, path)
    context = unwaiting_context(plan, path)
    run = FinalsRun(plan=plan, context=context, journal=journal, clock=clock, time=time)
    cut, trained = run.run()
    open_finals(cut, path)
    return cut, trained


def open_finals(plan: Plan, path: Path) -> RunFolder:
    """The run folder of the finals. A record of more or fewer cells gives its place."""
    folder = RunFolder(path)
    if (path / RUN).is_file() and folder.run_record().id != plan.id:
        folder.write_run_record(describe(plan))
    return open_run(plan, path, describe(plan))


def _trained(context: RunContext, cell: Cell, clock: Clock) -> Reading:
    """A training that fails is a result."""
    assert cell.training is not None
    started, rows = clock.now(), len(context.plan.task.validation)
    try:
        training, choice = with_chosen_rate(context, cell.training)
        if cell.seed == context.plan.cells[0].seed:  # the trials are of all seeds
            clock.worked(steps=len(choice.trials) * steps_of(context.plan))
            clock.worked(rows=len(choice.trials) * rows)
        adapted, record = get_trained(context, training)
    except (SearchFailed, TrainingFailed) as error:
        spent = clock.now() - started
        return Reading(steps=0, seconds=spent, predictions=None, reason=str(error))
    made = context.predictions(adapted.model, cell.task, "validation")
    clock.worked(steps=record.steps, rows=rows)
    return Reading(steps=record.steps, seconds=clock.now() - started, predictions=made)


def read_test_split(plan: Plan, journal: Journal, clock: Clock) -> tuple[Results, float]:
    """Reads the test split, measures every finalist, and writes the comparison's reports.

    Returns what it took, too; that of the first time, where it is done again.
    """
    started = clock.now()
    results = run_plan(plan, journal.path / "finals", engine=Unwaiting())
    stored = journal.read("test.json") or {"seconds": clock.now() - started}
    journal.write("test.json", stored)
    return results, stored["seconds"]


def with_results(trained: Trained, results: Results, seconds: float = 0.0) -> Trained:
    """Without the finalists that no seed of could be measured, which have failed.

    Args:
        trained: the finalists.
        results: as they were measured.
        seconds: what that took.
    """
    reasons = {(row.method, row.base): row.reason or "" for row in results.failures}
    done = {(row.method, row.base) for row in results.results if row.status == "done"}
    lost = {key: reasons.get(key, "") for key in trained.validation if key not in done}
    left = {key: made for key, made in trained.validation.items() if key not in lost}
    return dataclasses.replace(
        trained,
        validation=left,
        failed={**trained.failed, **lost},
        seconds=trained.seconds + seconds,
    )


def measured(results: Results, key: tuple[str, str], facts: Facts) -> Facts:
    """The facts of a finalist as they were measured; a mean over its seeds."""
    rows = [row for row in results.results if (row.method, row.base) == key]

    def mean(column: str) -> float | None:
        values = [value for row in rows if (value := getattr(row, column)) is not None]
        return sum(values) / len(values) if values else None

    columns = {
        "train_peak_bytes": mean("train_peak_bytes"),
        "infer_peak_bytes": mean("infer_peak_bytes"),
        "disk_bytes": mean("delta_bytes"),
        "trained_params": mean("trained_params"),
        "deployed_params": mean("deployed_params"),
    }
    known: dict[str, Any] = {
        name: round(value) for name, value in columns.items() if value is not None
    }
    return dataclasses.replace(facts, **known, latency=mean("latency_vs_base_b1"))


def save_choice(bench: Bench, plan: Plan, cell: Cell, folder: Path) -> None:
    """Saves the trained delta of a cell as it is deployed."""
    context = unwaiting_context(plan, folder.parent / "finals")
    assert cell.training is not None
    training, _ = with_chosen_rate(context, cell.training)
    adapted, _ = get_trained(context, training)
    adapted.deploy()
    adapted.save(folder)
