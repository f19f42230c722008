"""Extra tables of a report: latency by shape, learning curves, and verdicts of other libraries.

Each is a CSV file, cell by cell. The first two are sheets on the page too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from deltakit.compare.records.latency import ShapeTime
from deltakit.compare.records.result import Row
from deltakit.compare.records.run import RunRecord
from deltakit.compare.records.training import LearningCurve
from deltakit.compare.records.verdict import Verdict
from deltakit.compare.report.number_format import (
    MISSING,
    format_duration,
    format_milliseconds,
    format_ratio,
)
from deltakit.compare.report.summary import RowSummary
from deltakit.compare.report.time_to_score import TimeToScore, mean_curve, time_to_score
from deltakit.compare.stats.metrics import Metric

if TYPE_CHECKING:
    import pandas as pd

Key = tuple[str, str, int]
"""A cell: its method, base and seed."""


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A small table in words; the first column names the row."""

    titles: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


# --------------------------------------------------------------------------------------- latency


def latency_table(
    times: Mapping[Key, Sequence[ShapeTime]],
    summaries: Sequence[RowSummary],
    names: Mapping[Row, str],
) -> TextTable | None:
    """One line a row, one column a shape and phase; None where no shape was asked for.

    Args:
        times: of every cell that has some.
        summaries: the rows.
        names: what the page calls them.
    """
    columns = dict.fromkeys((time.shape, time.phase) for each in times.values() for time in each)
    if not columns:
        return None
    words = [_latency_line(times, summary, list(columns)) for summary in summaries]
    return TextTable(
        titles=("Row", *(f"{shape}, {phase}" for shape, phase in columns)),
        lines=tuple(
            (names[summary.method, summary.base], *line)
            for summary, line in zip(summaries, words, strict=True)
            if set(line) != {MISSING}
        ),
    )


def _latency_line(
    times: Mapping[Key, Sequence[ShapeTime]],
    summary: RowSummary,
    columns: Sequence[tuple[str, str]],
) -> list[str]:
    own = [
        time
        for (method, base, _), several in times.items()
        for time in several
        if (method, base) == (summary.method, summary.base)
    ]
    return [
        _latency_words([each for each in own if (each.shape, each.phase) == column], summary.mark)
        for column in columns
    ]


def _latency_words(several: Sequence[ShapeTime], mark: str) -> str:
    """Means over seeds: 4.31 ms, 1.08× (merged 1.00×)."""
    if not several:
        return MISSING
    merged = [each.merged_vs_base for each in several if each.merged_vs_base is not None]
    folded = f" (merged {format_ratio(fmean(merged))})" if merged else ""
    took = f"{format_milliseconds(fmean(each.ms for each in several))} {mark}".rstrip()
    return f"{took}, {format_ratio(fmean(each.vs_base for each in several))}{folded}"


def latency_csv(times: Mapping[Key, Sequence[ShapeTime]]) -> str:
    """``latency.csv``: one line for each cell, shape and phase."""
    return _csv(
        [
            {**_cell(key), **dataclasses.asdict(time)}
            for key, several in times.items()
            for time in several
        ]
    )


# ------------------------------------------------------------------------------------ verdicts


def verdicts_csv(verdicts: Mapping[Key, Sequence[Verdict]]) -> str:
    """``judged.csv``: one line for each cell and score of another library."""
    return _csv(
        [{**_cell(key), **each.to_dict()} for key, several in verdicts.items() for each in several]
    )


# ---------------------------------------------------------------------------------- learning curves


def mean_curves(
    curves: Mapping[Key, LearningCurve], summaries: Sequence[RowSummary]
) -> dict[Row, LearningCurve]:
    """The mean curve of every row that has one, stage 1 before it."""
    of: dict[Row, list[LearningCurve]] = {}
    for (method, base, _), curve in curves.items():
        of.setdefault((method, base), []).append(curve)
    return {
        (summary.method, summary.base): mean_curve(
            of[summary.method, summary.base], summary.mean("stage1_seconds") or 0.0
        )
        for summary in summaries
        if (summary.method, summary.base) in of
    }


def time_to_score_of(
    curves: Mapping[Row, LearningCurve], run: RunRecord, metric: Metric
) -> TimeToScore | None:
    """The time to score of the rows' mean curves; the ends are those in full precision, if any."""
    full = run.full_precision
    rows = sorted(curves, key=lambda row: row[1] != full)

    def first(name: str) -> Row | None:
        label = run.role(name)
        return next((row for row in rows if row[0] == label), None)

    return time_to_score(curves, first("floor"), first("ceiling"), metric.direction)


def curve_table(
    curves: Mapping[Row, LearningCurve],
    found: TimeToScore,
    names: Mapping[Row, str],
    metric: Metric,
) -> TextTable:
    """One line a row: the time at the target, and the score when the first row was done."""
    goal = "the target" if found.target is None else metric.format(found.target)
    return TextTable(
        titles=(
            "Row",
            f"Time to {goal}",
            f"Score after {format_duration(found.equal)}",
            "Whole training",
            "Score at its end",
        ),
        lines=tuple(
            (
                names[row],
                _or_missing(found.to_target[row], format_duration),
                _or_missing(found.at_equal[row], metric.format),
                format_duration(curve[-1].seconds),
                metric.format(curve[-1].score),
            )
            for row, curve in curves.items()
        ),
    )


def curve_csv(curves: Mapping[Key, LearningCurve]) -> str:
    """``pace.csv``: one line for each moment at which a cell's training was judged."""
    return _csv(
        [
            {**_cell(key), **dataclasses.asdict(each)}
            for key, curve in curves.items()
            for each in curve
        ]
    )


def _or_missing(value: float | None, words: Any) -> str:
    return MISSING if value is None else str(words(value))


def _cell(key: Key) -> dict[str, Any]:
    method, base, seed = key
    return {"method": method, "base": base, "seed": seed}


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    import pandas as pd

    frame: pd.DataFrame = pd.DataFrame(list(lines), dtype=object)
    return frame.to_csv(index=False, lineterminator="\n")
