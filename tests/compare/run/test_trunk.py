"""A comparison begins at kept states where a base without dropout has frozen layers below."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltakit.compare.adapted import DeltakitModel
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.training import TrainingRecord
from deltakit.compare.run.cell import train_now
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.progress import Silent

DROP = "adapterdrop[first=1]"


@pytest.fixture
def train(asked: Callable[..., Any]) -> Callable[[Path], tuple[TrainingRecord, list[str]]]:
    """Trains the cell of a model, and says what was noted."""

    def run(model: Path) -> tuple[TrainingRecord, list[str]]:
        plan, notes = build_plan(asked(DROP, model=str(model))), list[str]()
        folder: Any = SimpleNamespace(note=notes.append)
        context = RunContext(plan=plan, folder=folder, progress=Silent())
        cell = next(cell for cell in plan.cells if cell.label == DROP)
        assert cell.training is not None
        base = context.base(cell.training.task, cell.seed, cell.training.base)
        _, record = train_now(context, cell.training, base)
        context.let_trunk_go(cell.label)
        assert (context.trunk.rows, context.trunk.begun) == (0, 0)
        return record, notes

    return run


def test_losses_are_those_of_whole_passes(
    train: Callable[..., Any], llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, notes = train(llama)
    monkeypatch.setattr(DeltakitModel, "kept_trunk", lambda _, cache: contextlib.nullcontext(cache))
    whole, none = train(llama)
    assert kept.losses == pytest.approx(whole.losses, abs=1e-5)
    assert [each.score for each in kept.learning_curve] == [
        each.score for each in whole.learning_curve
    ]
    assert notes == [
        f"{DROP}: training steps and evaluations on rows that were seen before began at kept "
        "hidden states, above the frozen layers without deltas (60 rows, 0.0 MB). Its training "
        "time is shorter by that."
    ]
    assert not none


def test_dropout_in_the_base_lets_evaluations_alone_begin_there(
    train: Callable[..., Any], bert: Path
) -> None:
    _, notes = train(bert)
    assert notes == [
        f"{DROP}: evaluations on rows that were seen before began at kept hidden states, above the "
        "frozen layers without deltas (12 rows, 0.0 MB)."
    ]
