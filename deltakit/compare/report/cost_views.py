"""Score against cost: one picture for each kind of cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltakit.compare.report.number_format import (
    format_bytes,
    format_count,
    format_duration,
    format_ratio,
)
from deltakit.compare.report.pareto import PARAMETERS, Axis, Plot, Point, pareto_front, pareto_plot
from deltakit.compare.report.summary import RowSummary
from deltakit.compare.stats.metrics import Metric

_BYTES = ((1.0, "B"), (2.0**10, "KiB"), (2.0**20, "MiB"), (2.0**30, "GiB"))
_SECONDS = ((1.0, "seconds"), (60.0, "minutes"), (3600.0, "hours"))


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One kind of cost.

    Attributes:
        title: its name.
        of: a row's cost; None where it is not known.
        words: the cost as people read it.
        parts: its parts and related costs, in words.
        units: what the axis may count in, the smallest first; numbers as they are by default.
        axis: the axis, where it does not depend on the costs.
    """

    title: str
    of: Callable[[RowSummary], float | None]
    words: Callable[[float], str]
    parts: Callable[[RowSummary], str] = lambda summary: ""
    units: tuple[tuple[float, str], ...] = ((1.0, ""),)
    axis: Axis | None = None

    def axis_for(self, highest: float) -> Axis:
        """The axis for costs up to `highest`, in the largest unit of which there are two."""
        enough = [unit for unit in self.units if 2 * unit[0] <= highest]
        size, name = enough[-1] if enough else self.units[0]
        title = f"{self.title}, {name}" if name else self.title
        return self.axis or Axis(title=title, unit=size)


def _measured(column: str) -> Callable[[RowSummary], float | None]:
    return lambda summary: summary.mean(column)


def _training_seconds(summary: RowSummary) -> float | None:
    own = summary.mean("train_seconds")
    return None if own is None else own + (summary.mean("stage1_seconds") or 0.0)


def _training_parts(summary: RowSummary) -> str:
    named = (
        ("own", "train_seconds"),
        ("stage 1", "stage1_seconds"),
        ("and the search for a rate", "trials_seconds"),
    )
    known = [(name, summary.mean(column)) for name, column in named]
    words = [f"{name}: {format_duration(value)}" for name, value in known if value is not None]
    return ", ".join(words) if len(words) > 1 else ""


DEPLOYED = Cost(
    title="Deployed parameters",
    of=_measured("deployed_params"),
    words=format_count,
    axis=PARAMETERS,
)
TIME = Cost(
    title="Training time",
    of=_training_seconds,
    words=format_duration,
    parts=_training_parts,
    units=_SECONDS,
)
COSTS = (
    DEPLOYED,
    Cost(
        title="Training memory peak",
        of=_measured("train_peak_bytes"),
        words=format_bytes,
        units=_BYTES,
    ),
    TIME,
    Cost(
        title="Latency × base, one text",
        of=_measured("latency_vs_base_b1"),
        words=format_ratio,
    ),
)
"""The costs that a page draws, each with a front of its own."""


@dataclass(frozen=True, kw_only=True)
class PlotPoint:
    """A point in words.

    Attributes:
        row: which row it is.
        score: in words, its interval included.
        cost: in words.
        parts: of the cost, in words.
        on_front: "yes" or "".
    """

    row: str
    score: str
    cost: str
    parts: str
    on_front: str


@dataclass(frozen=True, kw_only=True)
class CostView:
    """One picture, and its points in words, the cheapest first."""

    title: str
    svg: str
    spots: tuple[PlotPoint, ...]


def points(summaries: Sequence[RowSummary], cost: Cost = DEPLOYED) -> tuple[Point, ...]:
    """The rows that have a score, with one of their costs."""
    return tuple(
        Point(
            label=summary.method,
            base=summary.base,
            cost=cost.of(summary),
            score=summary.score.mean,
            low=summary.score.low,
            high=summary.score.high,
        )
        for summary in summaries
        if summary.score is not None
    )


def picture(summaries: Sequence[RowSummary], *, title: str, metric: Metric) -> Plot:
    """The picture of its own file: score against deployed parameters."""
    return pareto_plot(points(summaries), title=title, metric=metric)


def views(summaries: Sequence[RowSummary], metric: Metric) -> tuple[CostView, ...]:
    """One view for each cost that any row has; times of several machines have no front."""
    comparable = [cost for cost in COSTS if cost is not TIME or not any(s.mark for s in summaries)]
    return tuple(
        _view(summaries, metric, cost)
        for cost in comparable
        if any(point.cost for point in points(summaries, cost))
    )


def _view(summaries: Sequence[RowSummary], metric: Metric, cost: Cost) -> CostView:
    found = points(summaries, cost)
    front = pareto_front(found, metric.direction)
    several = len({point.base for point in found}) > 1
    scored = [summary for summary in summaries if summary.score is not None]
    spots = [
        PlotPoint(
            row=f"{point.label} on {point.base}" if several else point.label,
            score=f"{summary.score}{metric.unit.value}",
            cost="" if point.cost is None else cost.words(point.cost),
            parts=cost.parts(summary),
            on_front="yes" if point in front else "",
        )
        for summary, point in zip(scored, found, strict=True)
    ]
    tipped = [
        dataclasses.replace(point, tip=_tip(spot)) for point, spot in zip(found, spots, strict=True)
    ]
    axis = cost.axis_for(max(point.cost or 0.0 for point in found))
    plot = pareto_plot(tipped, title="", metric=metric, axis=axis)
    order = sorted(range(len(found)), key=lambda n: (found[n].cost is None, found[n].cost or 0.0))
    return CostView(title=cost.title, svg=plot.svg, spots=tuple(spots[n] for n in order))


def _tip(spot: PlotPoint) -> str:
    parts = f" ({spot.parts})" if spot.parts else ""
    front = " On the front." if spot.on_front else ""
    return f"{spot.row}: {spot.score}, {spot.cost}{parts}.{front}"
