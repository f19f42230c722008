"""What a report says of rows with other seeds: every figure follows from what the rows show."""

from collections.abc import Mapping

import numpy as np
import pytest

from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.columns import legend
from deltakit.compare.report.frame import answer
from deltakit.compare.report.page import CellExtras, page_of
from deltakit.compare.report.sizes import sizes_md
from deltakit.compare.report.summary import RowSummary, summarise
from deltakit.compare.report.tables import table_md
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.stats.significance import mcnemar

RUN = RunRecord(roles={"floor": "head"}, constant="majority", full_precision="fp32")
N = 200
Made = Mapping[tuple[str, str, int], Predictions]


def made(right: int, shift: int = 0) -> Predictions:
    """Predictions of which so many are right, from the example `shift` on."""
    wrong = np.ones(N, dtype=int)
    wrong[(shift + np.arange(right)) % N] = 0
    return Predictions(labels=(0,) * N, predicted=tuple(wrong.tolist()))


def cells(predictions: Made) -> list[CellResult]:
    metric = METRICS.get("accuracy")
    return [
        CellResult(
            method=method, base=base, task="t", seed=seed, metric="accuracy",
            score=metric.value(each), score_low=metric.interval(each)[0],
            score_high=metric.interval(each)[1],
        )
        for (method, base, seed), each in predictions.items()
    ]  # fmt: skip


def rows_of(predictions: Made, without: Made | None = None) -> dict[str, RowSummary]:
    """The rows; the predictions of `without` are lost."""
    kept = {key: each for key, each in predictions.items() if key not in (without or {})}
    return {f"{row.method} {row.base}": row for row in summarise(cells(predictions), kept, RUN)}


def test_lost_predictions_of_one_seed_leave_no_difference_of_the_others() -> None:
    every = {("head", "fp32", s): made(120, s) for s in range(3)}
    every |= {("lora", "fp32", s): made(150 - 10 * s, s) for s in range(3)}
    assert rows_of(every)["lora fp32"].vs_floor is not None
    lost = rows_of(every, {("lora", "fp32", 0): every["lora", "fp32", 0]})["lora fp32"]
    assert (lost.vs_floor, lost.group) == (None, "")
    assert lost.score is not None and lost.score.mean == pytest.approx(70)


def test_a_floor_that_failed_on_a_base_is_not_that_of_another_base() -> None:
    every = {("head", "fp32", 0): made(120), ("lora", "nf4", 0): made(150)}
    failed = CellResult(method="head", base="nf4", task="t", seed=0, status="failed", reason="x")
    of_plan = summarise([*cells(every), failed], every, RUN)
    assert {row.vs_floor for row in of_plan} == {None}
    assert rows_of(every)["lora nf4"].vs_floor is not None, "none was asked for on this base"


def test_with_one_seed_the_answer_is_that_of_the_tests() -> None:
    """Intervals overlap, and yet the test of pairs tells the two apart: they share examples."""
    every = {
        ("head", "fp32", 0): made(60),
        ("a", "fp32", 0): made(140),
        ("b", "fp32", 0): made(124),
    }
    rows = rows_of(every)
    assert mcnemar(every["a", "fp32", 0], every["b", "fp32", 0]) < 0.05 / 3
    low, high = rows["a fp32"].score, rows["b fp32"].score
    assert low is not None and high is not None and high.high is not None and low.low is not None
    assert low.low < high.high
    said = answer(tuple(rows.values()), RUN)
    assert said.startswith("a scores highest, 70.0") and "apart from the other method" in said
    assert said in table_md(tuple(rows.values()), RUN)


def test_a_row_of_one_seed_is_told_from_one_of_five_by_the_same_rule() -> None:
    every = {("head", "fp32", s): made(100 + s, s) for s in range(5)}
    every |= {("a", "fp32", s): made(170 + s, s) for s in range(5)}
    every |= {("b", "fp32", 0): made(168, 0), ("c", "fp32", 0): made(60, 9)}
    rows = tuple(rows_of(every).values())
    said = answer(rows, RUN)
    assert "with 5 seeds, and cannot be told apart from b." in said
    assert "Between rows of one seed each" not in " ".join(legend(rows, RUN))
    page = page_of(rows, cells(every), RUN, CellExtras())
    assert any(line.startswith("1 to 5 seeds:") for line in page.limits)


def test_joined_rows_of_one_seed_each_are_not_called_several_seeds() -> None:
    every = {("head", "fp32", 0): made(100), ("lora", "fp32", 1): made(150)}
    rows = tuple(rows_of(every).values())
    page = page_of(rows, cells(every), RUN, CellExtras())
    assert any(line.startswith("One seed:") for line in page.limits)


def test_the_legend_says_which_rows_p_is_about_models_of() -> None:
    every = {("head", "fp32", 0): made(100), ("a", "fp32", 0): made(150)}
    every |= {("b", "fp32", s): made(140 + s, s) for s in range(3)}
    said = " ".join(legend(tuple(rows_of(every).values()), RUN))
    assert "Between rows of one seed each: p is about these trained models" in said


def test_scores_by_size_say_what_their_p_is_about() -> None:
    one = {("head", "fp32", 0): made(100), ("a", "fp32", 0): made(150)}
    rights = {"head": 100, "a": 150}
    several = {(name, "fp32", s): made(n + s, s) for name, n in rights.items() for s in range(3)}
    said = [
        sizes_md({100: tuple(rows_of(each).values())}, METRICS.get("accuracy"), "head")
        for each in (one, several)
    ]
    assert "about these trained models" in said[0] and "models" not in said[1]
