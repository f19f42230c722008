"""Learning curves: when a training is evaluated, and what the rows' curves say of each other."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltakit.compare.api import run_plan
from deltakit.compare.plan.lr_search import TUNING_SEED
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.training import EvalPoint, LearningCurve
from deltakit.compare.report.time_to_score import mean_curve, time_to_score
from deltakit.compare.run import cell as cells
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.learning_curve import CurveScore, IntermediateEval, eval_steps
from deltakit.compare.run.progress import Silent
from deltakit.compare.stats.metrics import Direction
from deltakit.compare.store.run_folder import RunFolder

HEAD, FULL, LORA, FUSION = (
    ("head", "fp32"),
    ("full", "fp32"),
    ("lora", "fp32"),
    ("fusion", "fp32"),
)


def pace(*moments: tuple[float, float]) -> LearningCurve:
    """A pace of (seconds, score)."""
    return tuple(
        EvalPoint(step=n, seconds=seconds, score=score)
        for n, (seconds, score) in enumerate(moments, start=1)
    )


@given(st.integers(1, 10_000), st.integers(1, 20))
def test_the_end_is_always_evaluated(steps: int, points: int) -> None:
    found = eval_steps(steps, points)
    assert max(found) == steps and min(found) >= 1
    assert len(found) == min(steps, points)


class Clock:
    """A meter that is moved by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = False

    def seconds(self) -> float:
        assert not self.stopped
        return self.now

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        self.stopped = True
        yield
        self.stopped = False


def test_judging_is_not_part_of_the_time() -> None:
    clock = Clock()

    def predict() -> float:
        assert clock.stopped
        return clock.now / 100

    watch = IntermediateEval(12, CurveScore(score=predict, points=6), clock)  # type: ignore[arg-type]
    for step in range(1, 13):
        clock.now += 1.0
        watch.after(step)
    assert [each.step for each in watch.points] == [2, 4, 6, 8, 10, 12]
    assert [each.seconds for each in watch.points] == [2, 4, 6, 8, 10, 12]
    assert watch.points[-1].score == 0.12


def test_a_mean_over_seeds_begins_after_stage_1() -> None:
    found = mean_curve([pace((1, 0.5), (2, 0.7)), pace((3, 0.7), (4, 0.9))], before=10.0)
    assert [each.seconds for each in found] == [12, 13]
    assert [each.score for each in found] == pytest.approx([0.6, 0.8])


def test_time_to_the_target_and_the_score_when_the_first_is_done() -> None:
    found = time_to_score(
        {
            HEAD: pace((1, 0.5), (2, 0.6)),
            FULL: pace((4, 0.6), (8, 0.8)),
            LORA: pace((3, 0.65), (6, 0.75)),
            FUSION: pace((20, 0.7), (22, 0.9)),
        },
        HEAD,
        FULL,
        Direction.HIGHER,
    )
    assert found is not None
    assert found.target == pytest.approx(0.7)
    assert found.equal == 6, "the floor is always first and does not count"
    assert found.to_target[HEAD] is None
    assert found.to_target[FULL] == pytest.approx(6)
    assert found.to_target[LORA] == pytest.approx(4.5)
    assert found.to_target[FUSION] == 20, "before its first moment nothing is known"
    assert found.at_equal[HEAD] == 0.6
    assert found.at_equal[FULL] == pytest.approx(0.7)
    assert found.at_equal[LORA] == 0.75
    assert found.at_equal[FUSION] is None


def test_lower_scores_can_be_the_better_ones() -> None:
    rows = {
        HEAD: pace((1, 30), (2, 20)),
        FULL: pace((1, 18), (3, 10)),
        LORA: pace((2, 20), (4, 12)),
    }
    found = time_to_score(rows, HEAD, FULL, Direction.LOWER)
    assert found is not None and found.target == 15
    assert found.to_target[HEAD] is None
    assert found.to_target[FULL] == pytest.approx(1.75)
    assert found.to_target[LORA] == pytest.approx(3.25)


def test_a_floor_on_any_base_does_not_set_the_time() -> None:
    rows = {HEAD: pace((1, 0.5)), ("head", "nf4"): pace((2, 0.5)), LORA: pace((5, 0.7))}
    found = time_to_score(rows, HEAD, None, Direction.HIGHER)
    assert found is not None and found.equal == 5
    assert (
        time_to_score(
            {HEAD: rows[HEAD], ("head", "nf4"): rows["head", "nf4"]}, HEAD, None, Direction.HIGHER
        )
        is None
    )


def test_without_a_ceiling_there_is_no_target() -> None:
    found = time_to_score({LORA: pace((1, 0.5))}, None, None, Direction.HIGHER)
    assert found is not None and found.target is None and found.to_target[LORA] is None
    assert time_to_score({HEAD: pace((1, 0.5))}, HEAD, FULL, Direction.HIGHER) is None
    assert time_to_score({}, None, None, Direction.HIGHER) is None


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0, 1)), min_size=1, max_size=6))
def test_at_the_time_to_the_target_the_score_is_the_target(
    steps: list[tuple[float, float]],
) -> None:
    seconds, moments = 0.0, []
    for took, score in steps:
        seconds += took
        moments.append((seconds, score))
    rows = {LORA: pace(*moments), FULL: pace((1000.0, 1.0)), HEAD: pace((0.01, 0.0))}
    found = time_to_score(rows, HEAD, FULL, Direction.HIGHER)
    assert found is not None and found.target == 0.5
    reached = found.to_target[LORA]
    if reached is None:
        assert all(score < 0.5 for _, score in moments)
    else:
        assert moments[0][0] <= reached <= moments[-1][0]
        assert any(score >= 0.5 for at, score in moments if at >= reached - 1e-9)
        assert all(score < 0.5 for at, score in moments if at < reached - 1e-9)


# ------------------------------------------------------------------------------------ in a run


def test_judging_on_the_way_changes_no_training(asked: Callable[..., Any], tmp_path: Any) -> None:
    judged, silent = tmp_path / "judged", tmp_path / "silent"
    request = asked("adapter,prefix,lora[dropout=0.3]")
    ended = run_plan(build_plan(request), judged)
    without = replace(request, protocol=replace(request.protocol, curve_points=0))
    plain = run_plan(build_plan(without), silent)
    for ours, theirs in zip(ended.results, plain.results, strict=True):
        assert (ours.score, ours.final_loss) == (theirs.score, theirs.final_loss)
    weights = sorted(judged.rglob("deltas/*/*.safetensors"))
    assert len(weights) == len(sorted(silent.rglob("deltas/*/*.safetensors"))) > 0
    for file in weights:
        other = silent / file.relative_to(judged)
        assert file.read_bytes() == other.read_bytes()
    assert not (silent / "pace.csv").exists()


def test_the_last_moment_is_the_trained_model(asked: Callable[..., Any], tmp_path: Any) -> None:
    plan, out = build_plan(asked("lora", trials=2, lr=None)), tmp_path / "run"
    run_plan(plan, out)
    each = plan.cells[-1]
    (*_, last) = RunFolder(out).extras(each.id, "pace")
    context = RunContext(plan=plan, folder=RunFolder(out), progress=Silent())
    assert each.training is not None
    training, _ = cells.with_chosen_rate(context, each.training)
    adapted, record = cells.get_trained(context, training)
    curve = cells._curve(context, adapted, training)
    assert curve is not None and curve.score() == last["score"]
    end = record.learning_curve[-1]
    assert end.score == last["score"] and end.seconds <= record.seconds
    assert len(record.learning_curve) == plan.request.protocol.curve_points
    trial = next(iter(plan.trials(each.training)))
    assert trial.seed == TUNING_SEED and cells._curve(context, adapted, trial) is None
