"""Score against cost, one picture for each cost: the Pareto plots of a comparison.

The same rows give the same bytes: no date, no version and no random id is written, and the style
does not depend on the reader's own matplotlib settings.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any, Literal

from deltakit.compare.report.label_placement import Stretch, clip, label, place, stacked
from deltakit.compare.stats.metrics import Direction, Metric, Unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

INK = "#1f2328"
SOFT = "#6e7781"
GRID = "#e4e7eb"
PAPER = "#ffffff"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which people with any colour vision tell apart: one for each base."""

_MARKERS = ("o", "s", "^", "D", "v", "P")

STYLE = {
    "svg.hashsalt": "deltakit",
    "svg.fonttype": "path",
    "font.family": ["DejaVu Sans"],
    "font.size": 8.0,
    "text.parse_math": False,  # a task may have a dollar in its name
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row of the table in the plot.

    Attributes:
        label: the text next to it.
        base: which base it ran on: its colour and marker.
        cost: what it is set against; None where that is not known.
        score: as people read it.
        low: lower end of the score's 95 % interval, where there is one.
        high: upper end.
        tip: the text shown on hover.
    """

    label: str
    base: str
    cost: float | None
    score: float
    low: float | None = None
    high: float | None = None
    tip: str = ""

    @property
    def span(self) -> tuple[float, float]:
        """The ends of the interval, or the score twice."""
        low = self.score if self.low is None else self.low
        high = self.score if self.high is None else self.high
        return low, high


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The cost axis of a plot.

    Attributes:
        title: its text.
        unit: what costs are divided by for it.
        ticks: how its numbers are written: "engineering" (10 k) or "plain".
        logarithmic_from: how many times the lowest cost the highest must be for a logarithmic axis.
    """

    title: str
    unit: float = 1.0
    ticks: Literal["engineering", "plain"] = "plain"
    logarithmic_from: float = 15.0


PARAMETERS = Axis(
    title="Deployed parameters, the base left out", ticks="engineering", logarithmic_from=0.0
)


def pareto_front(
    points: Sequence[Point], direction: Direction = Direction.HIGHER
) -> tuple[Point, ...]:
    """The points that no other beats: none has at most their cost and a better score.

    Args:
        points: the rows that have a score.
        direction: which scores are the better ones.

    Returns:
        The front, cheapest first. Points of which no cost is known are not on it.
    """
    known = [point for point in points if point.cost is not None]
    front: list[Point] = []
    for point in sorted(known, key=lambda p: (p.cost or 0, -direction.rank(p.score))):
        if not front or direction.rank(point.score) > direction.rank(front[-1].score):
            front.append(point)
    return tuple(front)


def pareto_plot(
    points: Sequence[Point], *, title: str, metric: Metric, axis: Axis = PARAMETERS
) -> Plot:
    """Draws score against cost, the better scores on top.

    Points without a cost lie nowhere on the axis: they are horizontal lines, for the others to be
    seen against.

    Args:
        points: the rows that have a score.
        title: what was compared; "" for a picture that is named elsewhere.
        metric: what the score is.
        axis: what the cost is.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        points = [_raised(point, metric.direction) for point in points]
        bases = tuple(dict.fromkeys(point.base for point in points))
        lines = [point for point in points if not point.cost]
        placed = [_scaled(point, axis) for point in points if point.cost]
        front = [_scaled(point, axis) for point in pareto_front(points)]
        if _is_logarithmic(placed, axis):
            placed, front = _dodged(placed, bases), _dodged(front, bases)
        _frame(axes, placed, lines, metric, axis)
        if title:
            figure.suptitle(clip(title, 80), x=0.02, ha="left", fontsize=9, fontweight="bold")
        labels = _draw_lines(axes, lines, bases, metric)
        labels += _draw_points(axes, placed, front, bases)
        stairs = _stairs(axes, front)
        axes.plot(*zip(*stairs, strict=True), color=INK, linewidth=1.2, zorder=2)
        _draw_legend(figure, bases, placed)
        place(figure, axes, labels, _lengths(placed, stairs))
        svg = rendered(figure, "svg").decode("utf-8")
        return Plot(png=rendered(figure, "png"), svg=_with_tips(svg, placed))


def _with_tips(svg: str, placed: Sequence[Point]) -> str:
    """The picture with a title at each point that has a tip."""
    for number, point in enumerate(placed):
        mark = f'<g id="point-{number}">'
        svg = svg.replace(mark, f'<g class="point"><title>{escape(point.tip)}</title>')
    return svg


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A finished picture in both formats."""

    png: bytes
    svg: str


def rendered(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """A figure as the bytes of a file that does not change from one run to the next."""
    buffer = io.BytesIO()
    # None keeps matplotlib from writing its version, and in an SVG the time.
    blank = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    figure.savefig(buffer, format=kind, metadata=blank[kind])
    return buffer.getvalue()


# ------------------------------------------------------------------------------- what is drawn


def _raised(point: Point, direction: Direction) -> Point:
    """The point as high as it is good: drawn below zero where lower scores are better."""
    if direction is Direction.HIGHER:
        return point
    low, high = (None if end is None else -end for end in (point.high, point.low))
    return dataclasses.replace(point, score=-point.score, low=low, high=high)


def _scaled(point: Point, axis: Axis) -> Point:
    return dataclasses.replace(point, cost=(point.cost or 0) / axis.unit)


def _is_logarithmic(placed: Sequence[Point], axis: Axis) -> bool:
    costs = [point.cost for point in placed if point.cost] or [1.0]
    return max(costs) >= axis.logarithmic_from * min(costs)


def _frame(
    axes: Axes, placed: Sequence[Point], lines: Sequence[Point], metric: Metric, axis: Axis
) -> None:
    from matplotlib.ticker import FuncFormatter

    if _is_logarithmic(placed, axis):
        _logarithmic(axes, placed, axis)
    else:
        _linear(axes, placed, axis)
    axes.set_ylim(*_score_limits(placed, lines, metric.unit))
    if metric.direction is Direction.LOWER:
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{0.0 - y:g}"))
    unit = ", %" if metric.unit is Unit.PERCENT else metric.direction.value
    axes.set_ylabel(f"{clip(metric.title, 30)} on the test split{unit}")
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _logarithmic(axes: Axes, placed: Sequence[Point], axis: Axis) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter, StrMethodFormatter

    costs = [point.cost for point in placed if point.cost] or [1e3, 1e6]
    axes.set_xscale("log")
    if axis.ticks == "engineering":
        axes.set_xlim(min(costs) / 4, max(costs) * 4)
        axes.xaxis.set_major_formatter(EngFormatter())
    else:
        axes.set_xlim(min(costs) / 2, max(costs) * 2)
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(f"{axis.title} (logarithmic)")


def _linear(axes: Axes, placed: Sequence[Point], axis: Axis) -> None:
    costs = [point.cost for point in placed if point.cost] or [0.0]
    # Room for the labels at either side; a point alone stands in the middle.
    room = 0.25 * ((max(costs) - min(costs)) or max(costs) or 1.0)
    axes.set_xlim(max(min(costs) - room, 0.0), max(costs) + room)
    axes.set_xlabel(axis.title)


def _score_limits(
    placed: Sequence[Point], lines: Sequence[Point], unit: Unit
) -> tuple[float, float]:
    """The range of scores to show: all points, and the lines that do not squeeze them flat."""
    own = [end for point in placed for end in point.span]
    if not own:
        own = [end for line in lines for end in line.span] or [0.0, 100.0]
    least = 2.0 if unit is Unit.PERCENT else 0.02 * max(map(abs, own)) or 1.0
    room = max(max(own) - min(own), least)
    near = [end for line in lines for end in line.span if line.score > min(own) - 1.5 * room]
    low, high = min(own + near), max(own + near)
    margin = 0.1 * max(high - low, least)
    return low - 1.2 * margin, high + margin


def _draw_lines(
    axes: Axes, lines: Sequence[Point], bases: Sequence[str], metric: Metric
) -> list[Annotation]:
    """The rows without parameters; those far below the rest are only named at the bottom."""
    bottom, _ = axes.get_ylim()
    shown = [line for line in lines if line.score >= bottom]
    hidden = _highest([line for line in lines if line.score < bottom])
    for line in shown:
        color = SOFT if len(bases) == 1 else _color(bases, line)
        axes.axhspan(*line.span, color=color, alpha=0.08, linewidth=0)
        axes.axhline(line.score, color=color, linewidth=1, linestyle=(0, (4, 3)))
    across = axes.get_yaxis_transform()
    labels = [
        label(axes, clip(line.label), (0.0, line.score), SOFT, across=across)
        for line in _highest(shown)
    ]
    if hidden:
        far = ((clip(line.label), metric.direction.rank(line.score)) for line in hidden)
        words = (f"{name} {metric.unit.words(y)[0]}{metric.unit.value}" for name, y in far)
        text = "below: " + ", ".join(words)
        labels.append(label(axes, text, (0.0, 0.0), SOFT, across=axes.transAxes))
    return labels


def _draw_points(
    axes: Axes, placed: Sequence[Point], front: Sequence[Point], bases: Sequence[str]
) -> list[Annotation]:
    for number, point in enumerate(placed):
        low, high = point.span
        bars = axes.errorbar(
            [point.cost or 0],
            [point.score],
            yerr=[[point.score - low], [high - point.score]],
            fmt=_MARKERS[bases.index(point.base) % len(_MARKERS)],
            color=_color(bases, point),
            markerfacecolor=_color(bases, point) if point in front else PAPER,
            markersize=7.5 if point in front else 5.5,
            elinewidth=1,
            capsize=2,
            zorder=3,
        )
        if point.tip:
            bars[0].set_gid(f"point-{number}")
    best = {point.label for point in front}
    return [
        label(
            axes,
            stacked(point.label),
            (point.cost or 0, point.score),
            INK,
            weight="bold" if point.label in best else "normal",
        )
        for point in _highest(placed)
    ]


def _color(bases: Sequence[str], point: Point) -> str:
    return PALETTE[bases.index(point.base) % len(PALETTE)]


def _highest(points: Sequence[Point]) -> list[Point]:
    """The best point of each label: one name is enough where its markers tell the bases apart."""
    best: dict[str, Point] = {}
    for point in sorted(points, key=lambda p: -p.score):
        best.setdefault(point.label, point)
    return [point for point in points if best[point.label] is point]


def _dodged(points: Sequence[Point], bases: Sequence[str]) -> list[Point]:
    """The points, those of different bases a little apart, so that no interval hides another."""
    middle = (len(bases) - 1) / 2
    return [
        dataclasses.replace(p, cost=(p.cost or 0) * 1.06 ** (bases.index(p.base) - middle))
        for p in points
    ]


def _stairs(axes: Axes, front: Sequence[Point]) -> list[tuple[float, float]]:
    """The corners of the line below which nothing is on the front, from left to right."""
    left, right = axes.get_xlim()
    corners: list[tuple[float, float]] = []
    for point in front:
        x = point.cost or left
        corners += [(x, corners[-1][1])] if corners else []
        corners.append((x, point.score))
    return [*corners, (right, corners[-1][1])] if corners else [(left, math.nan)]


def _draw_legend(figure: Figure, bases: Sequence[str], placed: Sequence[Point]) -> None:
    from matplotlib.lines import Line2D

    def marker(which: int, fill: str, label: str) -> Line2D:
        style: dict[str, Any] = {"marker": _MARKERS[which], "linestyle": "", "label": label}
        return Line2D([], [], color=PALETTE[which], markerfacecolor=fill, **style)

    if not placed:
        return
    handles = [
        Line2D([], [], color=INK, linewidth=1.2, label="Pareto front"),
        marker(0, PALETTE[0], "on it"),
        marker(0, PAPER, "not on it"),
    ]
    if len(bases) > 1:
        shown = enumerate(bases)
        handles = handles[:1] + [
            marker(n % len(PALETTE), PALETTE[n % len(PALETTE)], clip(base)) for n, base in shown
        ]
    figure.legend(handles=handles, loc="outside lower right", ncols=4, frameon=False, fontsize=7)


def _lengths(placed: Sequence[Point], stairs: Sequence[tuple[float, float]]) -> list[Stretch]:
    """What a label should not hide: intervals with their markers, and the front."""
    bars = [tuple((point.cost or 0, end) for end in point.span) for point in placed]
    markers = [((point.cost or 0, point.score),) * 2 for point in placed]
    steps = itertools.pairwise(stairs)
    return [(first, last) for first, last in (*bars, *markers, *steps)]
