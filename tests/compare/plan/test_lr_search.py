"""The search for a learning rate: the same grid for every method, judged on validation."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deltakit.compare.api import run_plan
from deltakit.compare.plan.lr_search import TUNING_SEED, SearchFailed, choose, rates
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.trial import Choice, Edge, Trial
from deltakit.compare.run import cell
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.train import TrainingFailed
from deltakit.compare.store.run_folder import RunFolder
from deltakit.errors import InvalidConfig


def tried(*scores: float | None) -> list[Trial]:
    return [Trial(lr=10.0**n, score=score, seconds=1.0) for n, score in enumerate(scores)]


def test_rates_are_even_in_log_space() -> None:
    assert rates(4, (3e-5, 3e-2)) == (3e-5, 3e-4, 3e-3, 3e-2)
    found = rates(7)
    steps = [math.log(b / a) for a, b in zip(found, found[1:], strict=False)]
    assert max(steps) - min(steps) < 0.05


@pytest.mark.parametrize(
    ("trials", "grid"),
    [(1, (1e-4, 1e-2)), (3, (1e-2, 1e-4)), (3, (0.0, 1.0)), (3, (1.0, math.inf))],
)
def test_rates_that_make_no_grid(trials: int, grid: tuple[float, float]) -> None:
    with pytest.raises(InvalidConfig, match="--trials|--lr-grid"):
        rates(trials, grid)


@pytest.mark.parametrize(
    ("scores", "lr", "edge"),
    [
        ((0.6, 0.8, 0.7), 10.0, Edge.INSIDE),
        ((0.9, 0.8, 0.7), 1.0, Edge.LOW),
        ((0.6, 0.7, 0.8), 100.0, Edge.HIGH),
        ((0.6, 0.8, 0.8), 10.0, Edge.INSIDE),  # of equal ones the lower
        ((0.6, 0.8, None), 10.0, Edge.INSIDE),  # a failed trial is still in the grid
        ((None, None, 0.5), 100.0, Edge.HIGH),
        ((0.5,), 1.0, Edge.INSIDE),
    ],
)
def test_the_best_trial_is_chosen_and_an_edge_is_marked(
    scores: tuple[float | None, ...], lr: float, edge: Edge
) -> None:
    choice = choose(tried(*scores))
    assert (choice.lr, choice.edge, choice.seconds) == (lr, edge, float(len(scores)))


def test_a_search_of_which_every_trial_failed() -> None:
    trials = [Trial(lr=0.1, score=None, reason="nan"), Trial(lr=1.0, score=None, reason="inf")]
    with pytest.raises(SearchFailed, match=r"every learning rate failed \(0.1: nan; 1: inf\)"):
        choose(trials)


# ------------------------------------------------------------------------------------ the plan


def test_every_method_has_the_same_trials(asked: Callable[..., Any]) -> None:
    plan = build_plan(asked("lora,fusion", trials=3, lr=None, seeds=2))
    for each in plan.cells:
        if each.training is not None:
            trials = plan.trials(each.training)
            assert [trial.lr for trial in trials] == list(rates(3))
            assert {trial.seed for trial in trials} == {TUNING_SEED}
            assert {trial.task for trial in trials} == {"two"}
            assert {m.training.seed for t in trials for m in t.members} <= {TUNING_SEED}


def test_trials_are_shared_by_the_seeds(asked: Callable[..., Any]) -> None:
    plan = build_plan(asked("lora", trials=3, lr=None, seeds=2))
    before = [training.id for _, first in plan.stages() for training in first]
    assert len(before) == len(set(before)) == 3 * len(("head", "full", "lora"))


def test_members_are_trained_at_the_rate_their_method_found(asked: Callable[..., Any]) -> None:
    plan = build_plan(asked("adapter,fusion", trials=3, lr=None))
    adapter, fusion = plan.cells[-2].training, plan.cells[-1].training
    ids = {trial.id for trial in plan.trials(adapter)}
    for member in fusion.members:
        assert {trial.id for trial in plan.trials(member.training)} == ids


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"trials": 3, "lr": 0.1}, "exclude each other"),
        ({"lr_grid": (1e-4, 1e-2)}, "give --trials too"),
        ({"trials": 3, "lr": None, "lr_grid": (1e-2, 1e-4)}, "a lower and a higher"),
        ({"trials": 0}, "trials"),
    ],
)
def test_searches_that_do_not_do(
    fields: dict[str, Any], message: str, asked: Callable[..., Any]
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        build_plan(asked("lora", **fields))


# ------------------------------------------------------------------------------------- the run


def test_a_run_with_trials(
    asked: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The way to a score is not of interest here, and one epoch is as good as two.
    asked_for = asked("fusion", trials=2, lr=None, seeds=2, epochs=1.0)
    protocol = replace(asked_for.protocol, curve_points=0)
    plan = build_plan(replace(asked_for, protocol=protocol))
    ended = run_plan(plan, tmp_path / "run", Silent())
    assert not ended.failures
    folder = RunFolder(tmp_path / "run")
    for each, row in zip(plan.cells, ended.results, strict=True):
        stored = folder.extras(each.id, "search")
        if each.training is None:
            assert stored is None and row.trials is None
            continue
        choice = Choice.from_plain(stored)
        assert [trial.lr for trial in choice.trials] == list(rates(2))
        assert (row.lr, row.trials, row.lr_edge) == (choice.lr, 2, choice.edge.value)
        best = max(trial.score or 0 for trial in choice.trials)
        assert next(t.score for t in choice.trials if t.lr == row.lr) == best
    by_seed = {row.seed: row for row in ended.results if row.method == "fusion"}
    assert by_seed[0].lr == by_seed[1].lr
    files = sorted((tmp_path / "run" / "trials").iterdir())
    assert len(files) == 2 * len(("head", "full", "adapter", "fusion"))
    assert {json.loads(file.read_text())["seed"] for file in files} == {TUNING_SEED}

    # The same command again, one cell lost: no trial is trained again.
    folder.cell_path(plan.cells[-1].id).unlink()
    trainings: list[int] = []
    real = cell.train
    monkeypatch.setattr(cell, "train", lambda *a, **k: trainings.append(k["seed"]) or real(*a, **k))
    assert not run_plan(plan, tmp_path / "run", Silent()).failures
    assert TUNING_SEED not in trainings


def test_a_rate_that_diverges_is_a_trial_that_failed(
    asked: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cell.train

    def train(*args: Any, **kwargs: Any) -> Any:
        if kwargs["lr"] > 0.01:
            raise TrainingFailed("the loss is nan at step 1")
        return real(*args, **kwargs)

    monkeypatch.setattr(cell, "train", train)
    plan = build_plan(asked("lora", trials=2, lr=None, epochs=1.0))
    ended = run_plan(plan, tmp_path / "run", Silent())
    assert not ended.failures
    choice = Choice.from_plain(RunFolder(tmp_path / "run").extras(plan.cells[-1].id, "search"))
    assert choice is not None
    assert [(t.score is None, t.reason) for t in choice.trials] == [
        (False, None),
        (True, "the loss is nan at step 1"),
    ]
    monkeypatch.setattr(cell, "train", lambda *a, **k: train(*a, **{**k, "lr": 1.0}))
    failed = run_plan(plan, tmp_path / "other", Silent())
    assert {row.reason for row in failed.failures} == {
        "SearchFailed: every learning rate failed (3e-05: the loss is nan at step 1; 0.03: the "
        "loss is nan at step 1). Give lower ones with --lr-grid."
    }
