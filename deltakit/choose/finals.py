"""The finals: a few candidates, trained afresh with fresh seeds, as a comparison trains them.

They are chosen on the validation split. The test split is read once, after the choice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltakit.choose.bench import Bench
from deltakit.choose.candidates import Candidate
from deltakit.choose.clock import Clock
from deltakit.choose.constraints import Facts
from deltakit.choose.decide.arms import Reading
from deltakit.choose.decide.ladder import Depth
from deltakit.choose.journal import Journal
from deltakit.compare.api import describe, run_plan
from deltakit.compare.plan.lr_search import SearchFailed
from deltakit.compare.plan.plan import CONSTANT, Cell, Plan, with_protocol
from deltakit.compare.records.protocol import Protocol
from deltakit.compare.records.result import Predictions
from deltakit.compare.results import Results
from deltakit.compare.run.cell import get_trained, with_chosen_rate
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.train import TrainingFailed
from deltakit.compare.store.run_folder import RunFolder, open_run
from deltakit.core.method import Role

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
    """

    validation: Mapping[tuple[str, str], tuple[Predictions, ...]]
    rates: Mapping[tuple[str, str], float]
    seconds: float
    failed: Mapping[tuple[str, str], str]


def train_finals(plan: Plan, journal: Journal, clock: Clock) -> Trained:
    """Trains what is not trained yet of the finals, and predicts the validation split."""
    folder = open_run(plan, journal.path / "finals", describe(plan))
    context = RunContext(plan=plan, folder=folder, progress=Silent())
    made: dict[tuple[str, str], list[Predictions]] = {}
    rates: dict[tuple[str, str], float] = {}
    failed: dict[tuple[str, str], str] = {}
    seconds = 0.0
    for cell in plan.cells:
        key = (cell.label, cell.base)
        if cell.training is None or key in failed:
            continue
        name = f"final-{cell.label}-{cell.base}-{cell.seed}"
        reading = journal.reading(name, 0)
        if reading is None:
            reading = _trained(context, cell, clock)
            journal.keep(name, 0, reading)
        seconds += reading.seconds
        if reading.predictions is None:
            failed[key] = reading.reason or "no reason was recorded"
            continue
        made.setdefault(key, []).append(reading.predictions)
        rates[key] = with_chosen_rate(context, cell.training)[0].lr
    return Trained(
        validation={key: tuple(each) for key, each in made.items() if key not in failed},
        rates=rates,
        seconds=seconds,
        failed=failed,
    )


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


def read_test_split(plan: Plan, folder: Path) -> Results:
    """Reads the test split, measures every finalist, and writes the comparison's reports."""
    return run_plan(plan, folder)


def with_results(trained: Trained, results: Results) -> Trained:
    """Without the finalists that no seed of could be measured, which have failed."""
    reasons = {(row.method, row.base): row.reason or "" for row in results.failures}
    done = {(row.method, row.base) for row in results.results if row.status == "done"}
    lost = {key: reasons.get(key, "") for key in trained.validation if key not in done}
    left = {key: made for key, made in trained.validation.items() if key not in lost}
    return dataclasses.replace(trained, validation=left, failed={**trained.failed, **lost})


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
    context = RunContext(plan=plan, folder=RunFolder(folder.parent / "finals"), progress=Silent())
    assert cell.training is not None
    training, _ = with_chosen_rate(context, cell.training)
    adapted, _ = get_trained(context, training)
    adapted.deploy()
    adapted.save(folder)
