"""Score against cost, as one picture: the Pareto plot of a comparison.

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
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

INK = "#1f2328"
SOFT = "#6e7781"
GRID = "#e4e7eb"
PAPER = "#ffffff"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's colours, which people with any colour vision tell apart: one for each base."""

_MARKERS = ("o", "s", "^", "D", "v", "P")

_STYLE = {
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
        label: what is written beside it.
        base: which base it ran on: its colour and marker.
        params: deployed parameters; None where nothing is known of them.
        score: in per cent.
        low: lower end of the score's 95 % interval, where there is one.
        high: upper end.
    """

    label: str
    base: str
    params: float | None
    score: float
    low: float | None = None
    high: float | None = None

    @property
    def span(self) -> tuple[float, float]:
        """The ends of the interval, or the score twice."""
        low = self.score if self.low is None else self.low
        high = self.score if self.high is None else self.high
        return low, high


def pareto_front(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points that no other beats: none has at most their parameters and a higher score.

    Returns:
        The front, cheapest first. Points without a number of parameters are not on it.
    """
    known = [point for point in points if point.params is not None]
    front: list[Point] = []
    for point in sorted(known, key=lambda p: (p.params or 0, -p.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return tuple(front)


def pareto_plot(points: Sequence[Point], *, title: str, metric: str) -> Plot:
    """Draws score against deployed parameters.

    Points without parameters of their own lie nowhere on a logarithmic axis: they are horizontal
    lines, for the others to be seen against.

    Args:
        points: the rows that have a score.
        title: what was compared.
        metric: what the score is, for the axis.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **_STYLE}):
        figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        bases = tuple(dict.fromkeys(point.base for point in points))
        lines = [point for point in points if not point.params]
        placed = _dodged([point for point in points if point.params], bases)
        front = _dodged(pareto_front(points), bases)
        _frame(axes, placed, lines, metric)
        figure.suptitle(_clip(title, 80), x=0.02, ha="left", fontsize=9, fontweight="bold")
        labels = _draw_lines(axes, lines, bases)
        labels += _draw_points(axes, placed, front, bases)
        stairs = _stairs(axes, front)
        axes.plot(*zip(*stairs, strict=True), color=INK, linewidth=1.2, zorder=2)
        _draw_legend(figure, bases, placed)
        _place(figure, axes, labels, _lengths(placed, stairs))
        return Plot(png=_bytes(figure, "png"), svg=_bytes(figure, "svg").decode("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A finished picture in both formats."""

    png: bytes
    svg: str


def _bytes(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    buffer = io.BytesIO()
    # None keeps matplotlib from writing its version, and in an SVG the time.
    blank = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    figure.savefig(buffer, format=kind, metadata=blank[kind])
    return buffer.getvalue()


# ------------------------------------------------------------------------------- what is drawn


def _frame(axes: Axes, placed: Sequence[Point], lines: Sequence[Point], metric: str) -> None:
    from matplotlib.ticker import EngFormatter, NullFormatter

    axes.set_xscale("log")
    params = [point.params for point in placed if point.params] or [1e3, 1e6]
    axes.set_xlim(min(params) / 4, max(params) * 4)
    axes.set_ylim(*_score_limits(placed, lines))
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("Deployed parameters beside the base (logarithmic)")
    axes.set_ylabel(f"{_clip(metric, 30)} on the test split, %")
    axes.grid(visible=True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _score_limits(placed: Sequence[Point], lines: Sequence[Point]) -> tuple[float, float]:
    """The range of scores to show: all points, and the lines that do not squeeze them flat."""
    own = [end for point in placed for end in point.span]
    if not own:
        own = [end for line in lines for end in line.span] or [0.0, 100.0]
    room = max(max(own) - min(own), 2.0)
    near = [end for line in lines for end in line.span if line.score > min(own) - 1.5 * room]
    low, high = min(own + near), max(own + near)
    margin = 0.1 * max(high - low, 2.0)
    return low - 1.2 * margin, high + margin


def _draw_lines(axes: Axes, lines: Sequence[Point], bases: Sequence[str]) -> list[Annotation]:
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
        _label(axes, _clip(line.label), (0.0, line.score), SOFT, across=across)
        for line in _highest(shown)
    ]
    if hidden:
        text = "below: " + ", ".join(f"{_clip(x.label)} {x.score:.1f} %" for x in hidden)
        labels.append(_label(axes, text, (0.0, 0.0), SOFT, across=axes.transAxes))
    return labels


def _draw_points(
    axes: Axes, placed: Sequence[Point], front: Sequence[Point], bases: Sequence[str]
) -> list[Annotation]:
    for point in placed:
        low, high = point.span
        axes.errorbar(
            [point.params or 0],
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
    best = {point.label for point in front}
    return [
        _label(
            axes,
            _stacked(point.label),
            (point.params or 0, point.score),
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
        dataclasses.replace(p, params=(p.params or 0) * 1.06 ** (bases.index(p.base) - middle))
        for p in points
    ]


def _stairs(axes: Axes, front: Sequence[Point]) -> list[tuple[float, float]]:
    """The corners of the line below which nothing is on the front, from left to right."""
    left, right = axes.get_xlim()
    corners: list[tuple[float, float]] = []
    for point in front:
        x = point.params or left
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
            marker(n % len(PALETTE), PALETTE[n % len(PALETTE)], _clip(base)) for n, base in shown
        ]
    figure.legend(handles=handles, loc="outside lower right", ncols=4, frameon=False, fontsize=7)


# -------------------------------------------------------------------------- labels, out of the way

_SPOTS = tuple(
    (
        side * x,
        y,
        "left" if side > 0 else "right",
        "bottom" if y > 0 else "top" if y < 0 else "center",
    )
    for x, y in (
        (7, 0),
        (6, 4),
        (6, -4),
        (10, 12),
        (10, -12),
        (14, 22),
        (14, -22),
        (18, 34),
        (18, -34),
    )
    for side in (1, -1)
)
"""Where a point's label may stand: its offset in points, and its alignment. The best ones first."""

_LINE_SPOTS = tuple(
    (along, away, "left", "bottom" if away > 0 else "top")
    for along in (4, 90, 180)
    for away in (2, -2)
)


def _label(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    color: str = INK,
    *,
    weight: str = "normal",
    across: Any = "data",
) -> Annotation:
    """A label at the point `at` of the coordinates `across`; `_place` moves it to a free spot."""
    label = axes.annotate(
        text,
        at,
        xycoords=across,
        textcoords="offset points",
        xytext=(0, 0),
        color=color,
        fontweight=weight,
        fontsize=7.5,
        zorder=4,
    )
    # A label never moves the axes: it is placed after they are.
    label.set_in_layout(False)
    return label


Stretch = tuple[tuple[float, float], tuple[float, float]]
"""The two ends of a straight line, in data coordinates."""


def _lengths(placed: Sequence[Point], stairs: Sequence[tuple[float, float]]) -> list[Stretch]:
    """What a label should not hide: intervals with their markers, and the front."""
    bars = [tuple((point.params or 0, end) for end in point.span) for point in placed]
    markers = [((point.params or 0, point.score),) * 2 for point in placed]
    steps = itertools.pairwise(stairs)
    return [(first, last) for first, last in (*bars, *markers, *steps)]


def _place(
    figure: Figure, axes: Axes, labels: Sequence[Annotation], lengths: Sequence[Stretch]
) -> None:
    """Puts each label at the first spot where it hides nothing, or at the one where it hides least.

    Greedy and in order, so that the same rows always give the same picture.
    """
    from matplotlib.transforms import Bbox

    figure.draw_without_rendering()
    taken = [Bbox(axes.transData.transform(ends)) for ends in lengths]
    taken = [Bbox([box.min, box.max]).padded(5) for box in taken]
    inside = axes.get_window_extent()
    for label in labels:
        spots = _SPOTS if label.xycoords == "data" else _LINE_SPOTS
        boxes = [_box_at(label, spot) for spot in spots]
        costs = [box.count_overlaps(taken) + 4 * _sticks_out(box, inside) for box in boxes]
        taken.append(_box_at(label, spots[costs.index(min(costs))]))


def _box_at(label: Annotation, spot: tuple[float, float, str, str]) -> Bbox:
    """Moves the label to a spot, and says which pixels it covers there."""
    x, y, horizontal, vertical = spot
    label.set_position((x, y))
    label.set(horizontalalignment=horizontal, verticalalignment=vertical)
    return label.get_window_extent()


def _sticks_out(box: Bbox, inside: Bbox) -> int:
    return int(
        not (
            inside.x0 <= box.x0
            and box.x1 <= inside.x1
            and inside.y0 <= box.y0
            and box.y1 <= inside.y1
        )
    )


def _clip(text: str, width: int = 32) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def _stacked(label: str) -> str:
    """A label with one line for each term of a sum."""
    return "\n+".join(_clip(term) for term in label.split("+"))
