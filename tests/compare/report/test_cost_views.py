"""Score against each cost: which costs, in which unit, and what a point says."""

from typing import Any

import pytest

from deltakit.compare.records.result import CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report import cost_views as views
from deltakit.compare.report.cost_views import COSTS, CostView
from deltakit.compare.report.pareto import Axis, pareto_plot
from deltakit.compare.report.summary import RowSummary, summarise
from deltakit.compare.stats.metrics import METRICS

ACCURACY = METRICS.get("accuracy")

MEMORY, TIME, LATENCY = COSTS[1:]


def row(method: str, score: float, **changes: Any) -> CellResult:
    fields = {"base": "fp32", "task": "t", "seed": 0, "metric": "accuracy", **changes}
    return CellResult(method=method, score=score, **fields)


def rows(*cells: CellResult) -> tuple[RowSummary, ...]:
    return summarise(cells, {}, RunRecord())


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "pareto_plot", pareto_plot)


def only(*cells: CellResult) -> CostView:
    (view,) = views.views(rows(*cells), ACCURACY)
    return view


def test_costs_that_no_row_has_are_not_drawn() -> None:
    cells = rows(row("a", 0.7, deployed_params=0, latency_vs_base_b1=1.1), row("b", 0.8))
    assert [view.title for view in views.views(cells, ACCURACY)] == [LATENCY.title]
    assert views.views((), ACCURACY) == ()


def test_training_time_holds_stage_1_and_says_the_search_apart() -> None:
    view = only(
        row("fused", 0.8, train_seconds=30.0, stage1_seconds=60.0, trials_seconds=300.0),
        row("alone", 0.7, train_seconds=40.0),
    )
    assert [spot.row for spot in view.spots] == ["alone", "fused"]
    alone, fused = view.spots
    assert (alone.cost, alone.parts) == ("40.0 s", "")
    assert fused.cost == "1 m 30 s"
    assert fused.parts == "own: 30.0 s, stage 1: 1 m 00 s, and the search for a rate: 5 m 00 s"


def test_rows_without_the_cost_come_last_and_those_that_failed_not_at_all() -> None:
    failed = CellResult(method="c", base="fp32", task="t", seed=0, status="failed", reason="why")
    view = only(row("a", 0.7), row("b", 0.6, train_peak_bytes=2**20), failed)
    assert [(spot.row, spot.cost, spot.on_front) for spot in view.spots] == [
        ("b", "1.00 MiB", "yes"),
        ("a", "", ""),
    ]


def test_bases_are_named_where_there_are_several() -> None:
    view = only(row("a", 0.7, train_peak_bytes=9), row("a", 0.6, train_peak_bytes=8, base="int8"))
    assert [spot.row for spot in view.spots] == ["a on int8", "a on fp32"]


@pytest.mark.parametrize(
    ("cost", "highest", "axis"),
    [
        (MEMORY, 900.0, Axis(title="Training memory peak, B")),
        (MEMORY, 3 * 2.0**30, Axis(title="Training memory peak, GiB", unit=2.0**30)),
        (TIME, 119.0, Axis(title="Training time, seconds")),
        (TIME, 120.0, Axis(title="Training time, minutes", unit=60.0)),
        (LATENCY, 1.4, Axis(title=LATENCY.title)),
    ],
)
def test_the_axis_has_the_largest_unit_of_which_there_are_two(
    cost: views.Cost, highest: float, axis: Axis
) -> None:
    assert cost.axis_for(highest) == axis


@pytest.mark.usefixtures("drawn")
def test_a_point_says_its_figures_in_a_title_that_is_escaped() -> None:
    view = only(row("<a&b>", 0.7, train_peak_bytes=2**21), row("c", 0.6, train_peak_bytes=2**22))
    assert "<title>&lt;a&amp;b&gt;: 70.0 %, 2.00 MiB. On the front.</title>" in view.svg
    assert "<title>c: 60.0 %, 4.00 MiB.</title>" in view.svg
    assert view.svg.count("<title>") == 2


@pytest.mark.usefixtures("drawn")
def test_the_same_rows_give_the_same_views() -> None:
    cells = rows(row("a", 0.7, train_seconds=5.0), row("b", 0.6, train_seconds=500.0))
    assert views.views(cells, ACCURACY) == views.views(cells, ACCURACY)


@pytest.mark.parametrize("costs", [(3.0,), (2.0, 2.0), (1.0, 1.5), (1.0, 2000.0)])
def test_any_range_of_costs_can_be_drawn(costs: tuple[float, ...]) -> None:
    points = views.points(
        rows(*(row(str(n), 0.7, latency_vs_base_b1=cost) for n, cost in enumerate(costs))), LATENCY
    )
    assert (
        pareto_plot(points, title="", metric=ACCURACY, axis=Axis(title="x")).svg.count("<svg") == 1
    )
