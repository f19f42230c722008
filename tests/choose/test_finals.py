"""The finals within the time that is left: rows and seeds for which there is none are left out."""

from pathlib import Path
from typing import Any

import pytest

import deltakit as dk
from deltakit.choose.decide.arms import Memory, Reading
from deltakit.choose.decide.finals_time import FinalsTime
from deltakit.choose.finals import FinalsRun, open_finals, trainings_of
from deltakit.compare.plan.plan import Cell, Plan, Training
from deltakit.compare.plan.request import Budget, request_of
from deltakit.compare.records.result import Predictions
from deltakit.models.source import BaseChoice

ROWS, SEEDS = ("head", "lora", "ia3", "adapter"), (20, 21, 22)
COMMON: dict[str, Any] = {"task": "t", "task_fingerprint": "t", "model_fingerprint": "m"}


def training(seed: int, rates: tuple[float, ...]) -> Training:
    method, budget = dk.LoRA(rank=4), Budget()
    base = BaseChoice(name="fp32")
    return Training(method=method, base=base, budget=budget, rates=rates, seed=seed, **COMMON)


def cell(label: str, seed: int, rates: tuple[float, ...] | None = (0.1,)) -> Cell:
    made = None if rates is None else training(seed, rates)
    return Cell(
        label=label, base="fp32", seed=seed, max_eval_samples=None, training=made, **COMMON
    )  # fmt: skip


def plan() -> Plan:
    cells = [cell("majority", seed, None) for seed in SEEDS]
    cells += [cell(label, seed) for label in ROWS for seed in SEEDS]
    model: Any = None
    request = request_of(ROWS[1:], {"seeds": 3})
    return Plan(request=request, model=model, tasks={}, cells=tuple(cells), roles={})


def journal(seconds: float, failed: str = "") -> Memory:
    """Every training is stored, and took that long."""
    made = Predictions(labels=(0, 1), predicted=(0, 1))
    kept = Memory()
    for label in ROWS:
        for seed in SEEDS:
            found = None if label == failed else made
            reading = Reading(steps=9, seconds=seconds, predictions=found, reason="it is so")
            kept.keep(f"final-{label}-fp32-{seed}", 0, reading)
    return kept


def run(kept: Memory, budget: float) -> tuple[Plan, Any]:
    nothing: Any = None
    time = FinalsTime(budget=budget, once=5, measured=1)
    return FinalsRun(plan=plan(), context=nothing, journal=kept, clock=nothing, time=time).run()


@pytest.mark.parametrize(
    ("seconds", "rows", "seeds"),
    [
        (10, ROWS, SEEDS),
        (15, ROWS, SEEDS[:2]),
        (30, ROWS[:2], SEEDS[:2]),
        (80, ROWS[:2], SEEDS[:1]),
    ],
)
def test_slower_trainings_leave_out_the_last_rows_and_seeds(
    seconds: float, rows: tuple[str, ...], seeds: tuple[int, ...]
) -> None:
    cut, trained = run(journal(seconds), budget=150)
    assert [label for label, _ in trained.validation] == list(rows)
    assert [label for label, _ in trained.dropped] == list(ROWS[len(rows) :])
    assert all(len(made) == len(seeds) for made in trained.validation.values())
    assert {(each.label, each.seed) for each in cut.cells} == {
        (label, seed) for label in ("majority", *rows) for seed in seeds
    }
    assert cut.request.seeds == len(seeds) and cut.request.methods == rows[1:]
    assert trained.seconds == seconds * len(rows) * len(seeds)


def test_a_row_that_fails_is_not_trained_again() -> None:
    _, trained = run(journal(1, failed="ia3"), budget=1000)
    assert trained.failed == {("ia3", "fp32"): "it is so"} and trained.seconds == 10
    assert ("ia3", "fp32") not in trained.validation and not trained.dropped


def test_the_first_seed_of_a_row_finds_its_rate() -> None:
    several = cell("lora", 20, (0.1, 0.2, 0.3))
    assert trainings_of(several, first=True) == 4
    assert trainings_of(several, first=False) == trainings_of(cell("lora", 20), first=True) == 1


def test_the_folder_of_the_finals_takes_a_plan_of_fewer_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltakit.choose import finals

    class Record:
        def __init__(self, its: Plan) -> None:
            self.id = its.id

    written: list[str] = []
    monkeypatch.setattr(finals, "describe", Record)
    monkeypatch.setattr(finals, "open_run", lambda its, path, record: written.append(its.id))
    monkeypatch.setattr(finals.RunFolder, "run_record", lambda self: Record(plan()), raising=True)
    monkeypatch.setattr(
        finals.RunFolder, "write_run_record", lambda self, record: written.append(record.id)
    )
    (tmp_path / "run.json").touch()
    cut, _ = run(journal(30), budget=150)
    open_finals(plan(), tmp_path)
    assert written == [plan().id]
    open_finals(cut, tmp_path)
    assert written == [plan().id, cut.id, cut.id]
