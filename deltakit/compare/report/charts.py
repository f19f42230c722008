"""The page's smaller charts, as positions and shades: curves and maps of layers.

Curves are of a search (score against the learning rate) and of a training (score against time).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltakit.compare.records.result import Row
from deltakit.compare.records.training import LearningCurve
from deltakit.compare.records.trial import Choice, Edge, Trial
from deltakit.compare.report.number_format import format_duration, format_percent, shorten
from deltakit.compare.stats.metrics import Metric

# ------------------------------------------------------------------- the search for learning rates

WIDTH, HEIGHT = 280, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 12, 10, 24


@dataclass(frozen=True, kw_only=True)
class Tick:
    """A number at an axis, and its position."""

    at: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One trial, or one moment of a training.

    Attributes:
        x: its position.
        y: its position; for a trial that failed, on the axis.
        kind: "chosen", "tried" or "failed"; the last moment of a training is "chosen".
        tip: the text shown on hover.
    """

    x: float
    y: float
    kind: str
    tip: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Score on the validation split against the learning rate or the time, for one row.

    Attributes:
        title: the row.
        chosen: the rate, or the time of the whole training, in words.
        edge: a remark, or "".
        line: through the trials that have a score, as an SVG polyline has it.
        marks: the trials.
    """

    title: str
    chosen: str
    edge: str
    line: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Curves of several rows, on the same axes.

    Attributes:
        across: of the horizontal axis.
        scores: of the vertical one.
        panels: the curves.
        target: the height of a line across all of them, if there is one.
    """

    across: tuple[Tick, ...]
    scores: tuple[Tick, ...]
    panels: tuple[Curve, ...]
    target: float | None = None


_EDGES = {
    Edge.LOW: "The lowest rate that was tried: a wider grid might hold a better one.",
    Edge.HIGH: "The highest rate that was tried: a wider grid might hold a better one.",
    Edge.INSIDE: "",
}


def curves(
    searches: Mapping[Row, Choice], names: Mapping[Row, str], metric: Metric
) -> Curves | None:
    """One curve for each search, the better scores on top; None where there was none.

    Args:
        searches: by row.
        names: what the page calls the rows.
        metric: what the scores are.
    """
    if not searches:
        return None
    trials = [trial for choice in searches.values() for trial in choice.trials]
    x = _scale([math.log(t.lr) for t in trials], _LEFT, WIDTH - _RIGHT)
    scores = [metric.unit.shown(t.score) for t in trials if t.score is not None]
    y = _better_on_top(scores, metric)
    return Curves(
        across=tuple(Tick(at=x(math.log(rate)), text=f"{rate:g}") for rate in _decades(trials)),
        scores=tuple(Tick(at=y(score), text=f"{score:g}") for score in _round_numbers(scores)),
        panels=tuple(_curve(names[row], choice, x, y, metric) for row, choice in searches.items()),
    )


def _curve(
    name: str,
    choice: Choice,
    x: Callable[[float], float],
    y: Callable[[float], float],
    metric: Metric,
) -> Curve:
    trials = sorted(choice.trials, key=lambda trial: trial.lr)
    marks = tuple(_mark(trial, choice, x, y, metric) for trial in trials)
    return Curve(
        title=name,
        chosen=f"{choice.lr:g}",
        edge=_EDGES[choice.edge],
        line=" ".join(f"{mark.x},{mark.y}" for mark in marks if mark.kind != "failed"),
        marks=marks,
    )


def _mark(
    trial: Trial,
    choice: Choice,
    x: Callable[[float], float],
    y: Callable[[float], float],
    metric: Metric,
) -> Mark:
    at = x(math.log(trial.lr))
    if trial.score is None:
        tip = f"{trial.lr:g}: failed, {shorten(trial.reason or 'no reason was recorded')}"
        return Mark(x=at, y=HEIGHT - _BOTTOM, kind="failed", tip=tip)
    return Mark(
        x=at,
        y=y(metric.unit.shown(trial.score)),
        kind="chosen" if trial.lr == choice.lr else "tried",
        tip=f"{trial.lr:g}: {metric.format(trial.score)}",
    )


def learning_curves(
    of: Mapping[Row, LearningCurve], names: Mapping[Row, str], target: float | None, metric: Metric
) -> Curves | None:
    """One curve for each training, against its seconds; None where none was judged on the way.

    Args:
        of: the mean curves by row.
        names: what the page calls the rows.
        target: a score to draw a line at.
        metric: what the scores are.
    """
    moments = [moment for curve in of.values() for moment in curve]
    if not moments:
        return None
    x = _scale([0.0, *(moment.seconds for moment in moments)], _LEFT, WIDTH - _RIGHT)
    scores = [metric.unit.shown(moment.score) for moment in moments]
    y = _better_on_top(scores, metric)
    ends = _round_numbers([0.0, *(moment.seconds for moment in moments)])
    return Curves(
        across=tuple(Tick(at=x(end), text=f"{end:g}") for end in ends),
        scores=tuple(Tick(at=y(score), text=f"{score:g}") for score in _round_numbers(scores)),
        panels=tuple(_learning_curve(names[row], curve, x, y, metric) for row, curve in of.items()),
        target=None if target is None else y(metric.unit.shown(target)),
    )


def _learning_curve(
    name: str,
    curve: LearningCurve,
    x: Callable[[float], float],
    y: Callable[[float], float],
    metric: Metric,
) -> Curve:
    marks = tuple(
        Mark(
            x=x(moment.seconds),
            y=y(metric.unit.shown(moment.score)),
            kind="chosen" if moment is curve[-1] else "tried",
            tip=(
                f"{format_duration(moment.seconds)}, step {moment.step}: "
                f"{metric.format(moment.score)}"
            ),
        )
        for moment in curve
    )
    line = " ".join(f"{mark.x},{mark.y}" for mark in marks)
    return Curve(
        title=name, chosen=format_duration(curve[-1].seconds), edge="", line=line, marks=marks
    )


def _better_on_top(scores: Sequence[float], metric: Metric) -> Callable[[float], float]:
    lowest, highest = sorted((HEIGHT - _BOTTOM, _TOP), key=metric.direction.rank, reverse=True)
    return _scale(scores, lowest, highest)


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Maps the range of `values` to that from `start` to `end`; one value to the middle."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    low, high = (low, high) if high > low else (low - 1.0, high + 1.0)
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _decades(trials: Sequence[Trial]) -> tuple[float, ...]:
    """The powers of ten among the rates; where there are fewer than two, both ends."""
    low, high = min(t.lr for t in trials), max(t.lr for t in trials)
    powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
    return tuple(10.0**power for power in powers) if len(powers) > 1 else (low, high)


def _round_numbers(scores: Sequence[float]) -> tuple[float, ...]:
    from matplotlib.ticker import MaxNLocator

    low, high = min(scores, default=0.0), max(scores, default=0.0)
    ticks = MaxNLocator(nbins=4).tick_values(low, high)
    return tuple(float(tick) for tick in ticks if low <= tick <= high)


# ------------------------------------------------------------------------------- maps of layers


@dataclass(frozen=True, kw_only=True)
class Shade:
    """One field of a map: a number in words, and how dark it is, from 0 to 1."""

    text: str
    heat: float


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A map: one line for each name, one column for each layer."""

    layers: tuple[int, ...]
    lines: tuple[tuple[str, tuple[Shade | None, ...]], ...]


Found = Mapping[str, Any]
"""What `deltakit.compare.measure.diagnostics` found in a cell, or a mean of that over cells."""


def mean_of(several: Sequence[Found]) -> dict[str, Any]:
    """The mean of every number over the cells that have it."""
    keys = dict.fromkeys(key for each in several for key in each)
    return {key: _mean([each[key] for each in several if key in each]) for key in keys}


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], Mapping):
        return mean_of(values)
    return sum(values) / len(values)


def changes(found: Mapping[Row, Found], names: Mapping[Row, str], part: str) -> Layers | None:
    """The movement of each block or site, shaded by line; None where nothing was recorded.

    Args:
        found: by row.
        names: what the page calls the rows.
        part: "moved" or "changes".
    """
    values = {
        (names[row], key): value
        for row, each in found.items()
        for key, value in each.get(part, {}).items()
    }
    return _layers(values, lambda value: format_percent(100 * value), _by_line) if values else None


def attention(found: Mapping[Row, Found], names: Mapping[Row, str]) -> Layers | None:
    """The attention that each member of a fusion gets; None without a fusion."""
    values = {
        (names[row], f"{key} · {member}"): value
        for row, each in found.items()
        for key, members in each.get("attention", {}).items()
        for member, value in members.items()
    }
    return _layers(values, lambda value: f"{value:.2f}", _as_it_is) if values else None


def load(found: Mapping[Row, Found], names: Mapping[Row, str]) -> Layers | None:
    """The share of the tokens that each member gets; None where nothing weighs members."""
    values = {(names[row], key): value for row, key, value in _loads(found)}
    return _layers(values, lambda value: f"{value:.2f}", _as_it_is) if values else None


def dead(found: Mapping[Row, Found], names: Mapping[Row, str]) -> list[str]:
    """The members that no token goes to, in words."""
    return [f"{names[row]}: {key}" for row, key, value in _loads(found) if value == 0]


def _loads(found: Mapping[Row, Found]) -> Iterator[tuple[Row, str, float]]:
    for row, each in found.items():
        for key, members in each.get("load", {}).items():
            for member, value in members.items():
                yield row, f"{key} · {member}", value


def _by_line(line: Mapping[int, float]) -> dict[int, float]:
    highest = max(line.values()) or 1.0
    return {layer: value / highest for layer, value in line.items()}


def _as_it_is(line: Mapping[int, float]) -> dict[int, float]:
    return dict(line)


def _layers(
    values: Mapping[tuple[str, str], float],
    words: Callable[[float], str],
    heats: Callable[[Mapping[int, float]], dict[int, float]],
) -> Layers:
    """The map of values by row and key, ``stack.layer`` or ``stack.layer.site``."""
    split = {(row, key): _split(key) for row, key in values}
    stacks = {stack for stack, _, _ in split.values()}
    lines: dict[str, dict[int, float]] = {}
    for (row, key), value in values.items():
        stack, layer, rest = split[row, key]
        parts = (row, stack if len(stacks) > 1 else "", rest)
        lines.setdefault(" · ".join(filter(None, parts)), {})[layer] = value
    columns = tuple(sorted({layer for _, layer, _ in split.values()}))
    return Layers(
        layers=columns,
        lines=tuple(
            (name, _shades(line, columns, words, heats(line))) for name, line in lines.items()
        ),
    )


def _shades(
    line: Mapping[int, float],
    columns: Sequence[int],
    words: Callable[[float], str],
    heats: Mapping[int, float],
) -> tuple[Shade | None, ...]:
    return tuple(
        Shade(text=words(line[n]), heat=round(heats[n], 3)) if n in line else None for n in columns
    )


def _split(key: str) -> tuple[str, int, str]:
    stack, _, rest = key.partition(".")
    layer, _, site = rest.partition(".")
    return stack, int(layer), site
