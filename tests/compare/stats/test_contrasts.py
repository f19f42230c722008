"""Which rows differ: references, pairing by seed, adjusted p, letters, collapsed runs."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.columns import columns_for, legend
from deltakit.compare.report.summary import summarise
from deltakit.compare.stats.contrasts import contrasts, letter_display
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.stats.significance import holm, paired_difference
from deltakit.errors import UnknownName

N = 400
ACCURACY = METRICS.get("accuracy")


def made(accuracy: float, seed: int, *, luck: int = 0) -> Predictions:
    """Predictions that are right as often as said, on labels that are the same for all."""
    labels = tuple(random.Random(0).choices((0, 1), k=N))
    draws = random.Random(1000 * luck + seed)
    right = [draws.random() < accuracy for _ in range(N)]
    predicted = tuple(each if ok else 1 - each for each, ok in zip(labels, right, strict=True))
    return Predictions(labels=labels, predicted=predicted)


def row(accuracy: float, *seeds: int, luck: int = 0) -> dict[int, Predictions]:
    return {seed: made(accuracy, seed, luck=luck) for seed in seeds}


def cells(method: str, seeds: dict[int, Predictions], base: str = "fp32") -> list[CellResult]:
    return [
        CellResult(method=method, base=base, task="t", seed=seed, metric="accuracy", score=0.5)
        for seed in seeds
    ]


def test_p_is_adjusted_for_the_number_of_rows() -> None:
    rows = {(name, "fp32"): row(0.6 + n / 50, 0, luck=n) for n, name in enumerate("abcd")}
    reference = ("a", "fp32")
    found = contrasts(rows, dict.fromkeys(rows, reference), ACCURACY)
    assert set(found) == set(rows) - {reference}
    raw = {key: paired_difference([rows[key][0]], [rows[reference][0]]) for key in found}
    assert {k: d.p for k, d in found.items()} == holm({k: d.p for k, d in raw.items()})
    assert {k: d.points for k, d in found.items()} == {k: d.points for k, d in raw.items()}


def test_rows_with_the_same_seeds_are_paired_by_seed() -> None:
    one, other = row(0.7, 0, 1, 3, luck=1), row(0.6, 3, 1, 0, luck=2)
    found = contrasts({("a", "x"): one, ("b", "x"): other}, {("a", "x"): ("b", "x")}, ACCURACY)
    expected = paired_difference([one[s] for s in (0, 1, 3)], [other[s] for s in (0, 1, 3)])
    assert found["a", "x"] == expected


def test_rows_without_a_common_seed_are_not_paired() -> None:
    one, other = row(0.7, 0, 1, luck=1), row(0.6, 2, 3, 4, luck=2)
    found = contrasts({("a", "x"): one, ("b", "x"): other}, {("a", "x"): ("b", "x")}, ACCURACY)
    assert found["a", "x"] == paired_difference(list(one.values()), list(other.values()))


@pytest.mark.parametrize("missing", ["row", "reference"])
def test_a_row_without_predictions_has_no_difference(missing: str) -> None:
    rows = {("a", "x"): row(0.7, 0), ("b", "x"): row(0.6, 0)}
    rows["a" if missing == "row" else "b", "x"] = {}
    assert contrasts(rows, {("a", "x"): ("b", "x")}, ACCURACY) == {}


def test_letters_tell_rows_apart() -> None:
    seeds = (0, 1, 2, 3, 4)
    rows = {
        ("good", "x"): row(0.9, *seeds, luck=1),
        ("alike", "x"): row(0.9, *seeds, luck=2),
        ("bad", "x"): row(0.6, *seeds, luck=3),
        ("once", "x"): row(0.7, 0, luck=4),
    }
    found = letter_display(rows, list(rows), ACCURACY)
    assert found == {("good", "x"): "a", ("alike", "x"): "a", ("bad", "x"): "b"}


def test_the_table_says_how_sure_it_is() -> None:
    rows = {"low": row(0.6, 0, 1, 2, luck=1), "a": row(0.85, 0, 1, 2, luck=2)}
    run = RunRecord(roles={"floor": "low", "baseline": "a"}, constant="majority")
    results = [cell for name, seeds in rows.items() for cell in cells(name, seeds)]
    predictions = {(m, "fp32", s): p for m, seeds in rows.items() for s, p in seeds.items()}
    low, high = summarise(results, predictions, run)
    assert {low.group, high.group} == {"a", "b"}
    assert low.vs_baseline is not None and low.vs_baseline.points < 0 and high.vs_baseline is None
    assert "vs baseline" in [column.title for column in columns_for((low, high))]
    text = " ".join(legend((low, high), run))
    assert "Baseline: a." in text and "4 times in 5" in text and "One seed" not in text
    once = {key: value for key, value in predictions.items() if key[2] == 0}
    single = summarise([r for r in results if r.seed == 0], once, run)
    assert {summary.group for summary in single} == {""}
    assert "One seed: p is about these trained models" in " ".join(legend(single, run))


def test_collapsed_runs_are_counted() -> None:
    labels = (0, 1) * 10
    seeds = {
        0: Predictions(labels=labels, predicted=(0,) * 20),
        1: Predictions(labels=labels, predicted=labels),
    }
    run = RunRecord(constant="majority")
    results = [*cells("a", seeds), *cells("majority", seeds)]
    predictions = {(m, "fp32", s): p for m in ("a", "majority") for s, p in seeds.items()}
    found, constant = summarise(results, predictions, run)
    assert (found.collapsed, found.seeds_done) == (1, "1 collapsed")
    assert (constant.collapsed, constant.seeds_done) == (0, "")


def test_a_baseline_is_a_row(asked: Callable[..., Any]) -> None:
    assert build_plan(asked("lora,adapter", baseline="lora")).roles["baseline"] == "lora"
    with pytest.raises(UnknownName, match="unknown --baseline 'lor'. Did you mean 'lora'"):
        build_plan(asked("lora", baseline="lor"))
