"""Labels in a picture, each where it hides nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

Stretch = tuple[tuple[float, float], tuple[float, float]]
"""The two ends of a straight line, in data coordinates."""

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


def label(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    color: str,
    *,
    weight: str = "normal",
    across: Any = "data",
) -> Annotation:
    """A label at the point `at` of the coordinates `across`; `place` moves it to a free spot."""
    placed = axes.annotate(
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
    placed.set_in_layout(False)
    return placed


def place(
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
    for each in labels:
        spots = _SPOTS if each.xycoords == "data" else _LINE_SPOTS
        boxes = [_box_at(each, spot) for spot in spots]
        costs = [box.count_overlaps(taken) + 4 * _sticks_out(box, inside) for box in boxes]
        taken.append(_box_at(each, spots[costs.index(min(costs))]))


def _box_at(label: Annotation, spot: tuple[float, float, str, str]) -> Bbox:
    """Moves the label to a spot, and returns the pixels that it covers there."""
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


def clip(text: str, width: int = 32) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def stacked(label: str) -> str:
    """A label with one line for each term of a sum."""
    return "\n+".join(clip(term) for term in label.split("+"))
