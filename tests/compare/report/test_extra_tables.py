"""Tables of what was recorded beside the rows, in words and as CSV."""

import csv
import io
from dataclasses import replace
from typing import Any

import pytest

from deltakit.compare.records.latency import ShapeTime
from deltakit.compare.records.result import CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.records.training import EvalPoint
from deltakit.compare.report import charts
from deltakit.compare.report.extra_tables import (
    curve_csv,
    curve_table,
    latency_csv,
    latency_table,
    mean_curves,
    time_to_score_of,
)
from deltakit.compare.report.summary import summarise
from deltakit.compare.stats.metrics import METRICS

ACCURACY = METRICS.get("accuracy")
RUN = RunRecord(roles={"floor": "head", "ceiling": "full"})
NAMES = {(method, "fp32"): method for method in ("head", "full", "lora", "fusion")}


def done(method: str, seed: int = 0, **columns: Any) -> CellResult:
    fields = {"base": "fp32", "task": "two", "metric": "accuracy", "score": 0.5, "n_test": 10}
    return CellResult(method=method, seed=seed, **{**fields, **columns})


def timed(phase: str, ms: float, vs_base: float, merged: float | None) -> ShapeTime:
    return ShapeTime(
        shape="1x8", phase=phase, ms=ms, iqr_ms=0.1, vs_base=vs_base, merged_vs_base=merged
    )


TIMES = {
    ("lora", "fp32", 0): (timed("prefill", 4.0, 1.1, 1.0), timed("decode", 2.0, 1.2, 0.98)),
    ("lora", "fp32", 1): (timed("prefill", 6.0, 1.3, 1.02), timed("decode", 2.0, 1.4, 1.0)),
    ("fusion", "fp32", 0): (timed("prefill", 8.0, 2.0, None),),
}


def test_latencies_are_means_over_seeds_with_merged_ratios() -> None:
    summaries = summarise([done("head"), done("lora"), done("lora", 1), done("fusion")], {}, RUN)
    sheet = latency_table(TIMES, summaries, NAMES)
    assert sheet is not None
    assert sheet.titles == ("Row", "1x8, prefill", "1x8, decode")
    assert sheet.lines == (
        ("lora", "5.00 ms, 1.20× (merged 1.01×)", "2.00 ms, 1.30× (merged 0.99×)"),
        ("fusion", "8.00 ms, 2.00×", "–"),
    )


def test_without_shapes_there_is_no_table_and_no_file() -> None:
    assert latency_table({}, summarise([done("lora")], {}, RUN), NAMES) is None
    assert latency_csv({}).strip() == curve_csv({}).strip() == ""


def test_times_of_several_machines_are_marked() -> None:
    rows = [
        done("lora", machine="one"),
        done("lora", 1, machine="two"),
        done("head", machine="one"),
    ]
    sheet = latency_table(TIMES, summarise(rows, {}, RUN), NAMES)
    assert sheet is not None and sheet.lines[0][2].startswith("2.00 ms [1, 2], 1.30×")


def test_every_latency_is_a_line_of_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(latency_csv(TIMES))))
    assert len(rows) == 5
    assert rows[0]["method"] == "lora" and rows[0]["phase"] == "prefill" and rows[0]["ms"] == "4.0"
    assert rows[4]["merged_vs_base"] == ""


# ------------------------------------------------------------------------------------------ pace


def pace(*moments: tuple[float, float]) -> tuple[EvalPoint, ...]:
    return tuple(EvalPoint(step=n, seconds=s, score=v) for n, (s, v) in enumerate(moments, 1))


PACES = {
    ("head", "fp32", 0): pace((1.0, 0.5), (2.0, 0.6)),
    ("full", "fp32", 0): pace((5.0, 0.6), (10.0, 0.8)),
    ("lora", "fp32", 0): pace((2.0, 0.6), (4.0, 0.7)),
    ("lora", "fp32", 1): pace((4.0, 0.8), (8.0, 0.9)),
    ("fusion", "fp32", 0): pace((2.0, 0.7), (4.0, 0.75)),
}


def test_when_rows_reach_the_target_and_where_they_are_at_equal_time() -> None:
    rows = [
        done("head"),
        done("full"),
        done("lora"),
        done("lora", 1),
        done("fusion", stage1_seconds=60.0),
    ]
    means = mean_curves(PACES, summarise(rows, {}, RUN))
    found = time_to_score_of(means, RUN, ACCURACY)
    assert found is not None
    sheet = curve_table(means, found, NAMES, ACCURACY)
    assert sheet.titles[1:] == (
        "Time to 70.0 %",
        "Score after 6.0 s",
        "Whole training",
        "Score at its end",
    )
    assert sheet.lines == (
        ("head", "–", "60.0 %", "2.0 s", "60.0 %"),
        ("full", "7.5 s", "64.0 %", "10.0 s", "80.0 %"),
        ("lora", "3.0 s", "80.0 %", "6.0 s", "80.0 %"),
        ("fusion", "1 m 02 s", "–", "1 m 04 s", "75.0 %"),
    )


def test_the_ends_are_those_in_full_precision() -> None:
    ends = {("head", "nf4"): pace((1.0, 0.1)), ("head", "fp32"): pace((1.0, 0.5))}
    rows = {**ends, ("full", "fp32"): pace((2.0, 0.9))}
    found = time_to_score_of(rows, replace(RUN, full_precision="fp32"), ACCURACY)
    assert found is not None and found.target == pytest.approx(0.7)


def test_curves_share_their_axes_and_the_line_of_the_target() -> None:
    means = {("full", "fp32"): PACES["full", "fp32", 0], ("lora", "fp32"): PACES["lora", "fp32", 0]}
    curves = charts.learning_curves(means, NAMES, 0.7, ACCURACY)
    assert curves is not None and len(curves.panels) == 2
    first, second = curves.panels
    assert (first.marks[-1].kind, first.marks[-1].tip) == ("chosen", "10.0 s, step 2: 80.0 %")
    assert second.marks[1].x < first.marks[1].x, "a later moment stands further to the right"
    assert second.marks[1].y == curves.target, "70 % is the target"
    assert first.marks[1].y < second.marks[1].y, "better scores are on top"
    assert charts.learning_curves({}, NAMES, None, ACCURACY) is None


def test_every_moment_is_a_line_of_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(curve_csv(PACES))))
    assert [row["method"] for row in rows] == ["head"] * 2 + ["full"] * 2 + ["lora"] * 4 + [
        "fusion"
    ] * 2
    assert rows[-1] == {
        "method": "fusion",
        "base": "fp32",
        "seed": "0",
        "step": "2",
        "seconds": "4.0",
        "score": "0.75",
    }


@pytest.mark.parametrize("metric", ["perplexity", "mse"])
def test_where_lower_is_better_they_are_on_top(metric: str) -> None:
    curves = charts.learning_curves(
        {("lora", "fp32"): pace((1.0, 9.0), (2.0, 3.0))}, NAMES, None, METRICS.get(metric)
    )
    assert curves is not None
    first, last = curves.panels[0].marks
    assert last.y < first.y
