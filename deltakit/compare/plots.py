"""Score against cost, as one picture: the Pareto plot of a comparison.

The same rows give the same bytes: no date, no version and no random id is written, and the style
does not depend on the reader's own matplotlib settings.
"""

from __future__ import annotations

import io
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
        placed = [point for point in points if point.params]
        lines = [point for point in points if not point.params]
        front = pareto_front(points)
        _frame(axes, placed, lines, metric)
        figure.suptitle(_clip(title, 80), x=0.02, ha="left", fontsize=9, fontweight="bold")
        bases = tuple(dict.fromkeys(point.base for point in points))
        labels = _draw_lines(axes, lines)
        labels += _draw_points(axes, placed, front, bases)
        _draw_front(axes, front)
        _draw_legend(figure, bases, placed)
        _place(figure, axes, labels, placed)
        return Plot(png=_bytes(figure, "png"), svg=_bytes(figure, "svg").decode("utf-8"))


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A finished picture in both formats."""

    png: bytes
    svg: str


def _bytes(figure: Figure, format: Literal["png", "svg"]) -> bytes:
    buffer = io.BytesIO()
    # None keeps matplotlib from writing its version, and in an SVG the time.
    blank = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    figure.savefig(buffer, format=format, metadata=blank[format])
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


def _draw_lines(axes: Axes, lines: Sequence[Point]) -> list[Annotation]:
    bottom, _ = axes.get_ylim()
    hidden = [line for line in lines if line.score < bottom]
    labels = [_draw_line(axes, line) for line in lines if line.score >= bottom]
    if hidden:
        text = "below: " + ", ".join(f"{_clip(line.label)} {line.score:.1f} %" for line in hidden)
        labels.append(_label(axes, text, 0.0, 0.0, color=SOFT, across=axes.transAxes))
    return labels


def _draw_line(axes: Axes, line: Point) -> Annotation:
    axes.axhspan(*line.span, color=SOFT, alpha=0.12, linewidth=0)
    axes.axhline(line.score, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
    across = axes.get_yaxis_transform()
    return _label(axes, _clip(line.label), 0.0, line.score, color=SOFT, across=across)


def _draw_points(
    axes: Axes, placed: Sequence[Point], front: Sequence[Point], bases: Sequence[str]
) -> list[Annotation]:
    labels = []
    for point in placed:
        which = bases.index(point.base) % len(PALETTE)
        best = point in front
        axes.errorbar(
            [point.params or 0],
            [point.score],
            yerr=[[point.score - point.span[0]], [point.span[1] - point.score]],
            fmt=_MARKERS[which],
            color=PALETTE[which],
            markerfacecolor=PALETTE[which] if best else PAPER,
            markersize=7.5 if best else 5.5,
            elinewidth=1,
            capsize=2,
            zorder=3,
        )
        weight = "bold" if best else "normal"
        labels.append(_label(axes, _clip(point.label), point.params or 0, point.score, weight))
    return labels


def _draw_front(axes: Axes, front: Sequence[Point]) -> None:
    """The stairs of what can be had for at most so many parameters."""
    if not any(point.params for point in front):
        return
    left, right = axes.get_xlim()
    xs = [point.params or left for point in front] + [right]
    ys = [point.score for point in front] + [front[-1].score]
    axes.plot(xs, ys, color=INK, linewidth=1.2, drawstyle="steps-post", zorder=2)


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

_SPOTS = (
    (7, 0, "left", "center"),
    (-7, 0, "right", "center"),
    (6, 5, "left", "bottom"),
    (6, -5, "left", "top"),
    (-6, 5, "right", "bottom"),
    (-6, -5, "right", "top"),
    (0, 9, "center", "bottom"),
    (0, -9, "center", "top"),
    (12, 14, "left", "bottom"),
    (12, -14, "left", "top"),
    (-12, 14, "right", "bottom"),
    (-12, -14, "right", "top"),
    (16, 26, "left", "bottom"),
    (16, -26, "left", "top"),
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
    x: float,
    y: float,
    weight: str = "normal",
    *,
    color: str = INK,
    across: Any = "data",
) -> Annotation:
    label = axes.annotate(
        text,
        (x, y),
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


def _place(
    figure: Figure, axes: Axes, labels: Sequence[Annotation], placed: Sequence[Point]
) -> None:
    """Puts each label at the first spot where it hides nothing, or at the one where it hides least.

    Greedy and in order, so that the same rows always give the same picture.
    """
    figure.draw_without_rendering()
    taken = [_obstacle(axes, point) for point in placed]
    inside = axes.get_window_extent()
    for label in labels:
        spots = _SPOTS if label.xycoords == "data" else _LINE_SPOTS
        boxes = [_box_at(label, spot) for spot in spots]
        costs = [box.count_overlaps(taken) + 2 * _sticks_out(box, inside) for box in boxes]
        best = costs.index(min(costs))
        taken.append(_box_at(label, spots[best]))


def _obstacle(axes: Axes, point: Point) -> Bbox:
    """The pixels of a point's marker and interval."""
    from matplotlib.transforms import Bbox

    ends = [axes.transData.transform((point.params or 0, end)) for end in point.span]
    return Bbox([ends[0], ends[1]]).padded(7)


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
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
