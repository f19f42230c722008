"""The comparison as a table in the terminal."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from deltakit.compare.records.result import CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.columns import (
    BASE,
    FORGOTTEN,
    VS_FULL,
    TableCell,
    columns_for,
    forgotten_cell,
    legend,
    measured,
    score_title,
    verdict_columns,
)
from deltakit.compare.report.number_format import (
    MISSING,
    format_bytes,
    format_count,
    format_duration,
    format_p_value,
    format_percent,
    format_ratio,
    shorten,
)
from deltakit.compare.report.summary import (
    PredictionsOf,
    RowSummary,
    VerdictsOf,
    reason_of,
    summarise,
)

if TYPE_CHECKING:
    from rich.table import Table


def _p_cell(summary: RowSummary) -> TableCell:
    difference = summary.vs_floor
    return TableCell(text=MISSING if difference is None else format_p_value(difference.p))


def _time_cell(summary: RowSummary) -> TableCell:
    own, before = summary.mean("train_seconds"), summary.mean("stage1_seconds")
    parts = [format_duration(value) for value in (own, before) if value is not None]
    mark = f"\n{summary.mark}" if parts and summary.mark else ""
    return TableCell(text=("\n+ ".join(parts) or MISSING) + mark)


def _terminal_score(summary: RowSummary) -> TableCell:
    if summary.failure is not None:
        return TableCell(text="failed")
    note = f"\n{summary.seeds_done}" if summary.seeds_done else ""
    score = MISSING if summary.score is None else f"{summary.score} {summary.group}".rstrip()
    return TableCell(text=score + note)


def _vs_full_cell(summary: RowSummary) -> TableCell:
    return TableCell(text=str(VS_FULL.cell(summary)).replace(" (", "\n("))


def _forgotten_cell(summary: RowSummary) -> TableCell:
    return TableCell(text=forgotten_cell(summary).text.replace(" ", "\n", 1))


_TERMINAL: tuple[tuple[str, Callable[[RowSummary], TableCell]], ...] = (
    ("vs floor\np", _p_cell),
    ("Forgotten", _forgotten_cell),
    ("Trained", measured("trained_params", format_count)),
    ("%", measured("trained_pct", lambda value: format_percent(value).removesuffix(" %"))),
    ("Step\n× full", measured("train_step_vs_full", format_ratio)),
    ("Latency\n×base b1", measured("latency_vs_base_b1", format_ratio)),
    ("Disk", measured("delta_bytes", format_bytes)),
    ("Time\n+ stage 1", _time_cell),
)


_DROPPED_FIRST = ("Disk", "%", "Forgotten", "vs floor\np", "Trained")
"""Columns that a narrow terminal goes without, in this order; the files have all of them."""


def terminal_table(
    rows: Sequence[CellResult],
    predictions: PredictionsOf,
    run: RunRecord,
    verdicts: VerdictsOf | None = None,
    *,
    width: int = 120,
) -> Table:
    """The comparison in short, for a terminal that is `width` columns wide.

    Why rows failed is said in the caption, where there is room for it.

    Raises:
        InvalidConfig: the rows belong to several tasks, or were tested on different splits.
    """
    from rich.console import Console

    summaries = summarise(rows, predictions, run, verdicts)
    caption = "\n".join([*_failed_lines(rows), " ".join(legend(summaries, run))])
    ruler = Console(width=1000)
    dropped: list[str] = []
    for title in ("", *_DROPPED_FIRST):
        dropped.append(title)
        table = _terminal_table(summaries, caption, dropped)
        if ruler.measure(table).maximum <= width:
            break
    return table


def _terminal_table(summaries: Sequence[RowSummary], caption: str, dropped: Sequence[str]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    shown = columns_for(summaries)
    several = BASE in shown
    dropped = [*dropped, *(() if FORGOTTEN in shown else (FORGOTTEN.title,))]
    bases = ((BASE.title, BASE.cell), ("vs full\nprecision", _vs_full_cell)) if several else ()
    score = (score_title(summaries), _terminal_score)
    judged = ((_folded(each.title), each.cell) for each in verdict_columns(summaries))
    kept = (column for column in _TERMINAL if column[0] not in dropped)
    columns = (*bases, score, *judged, *kept)
    table = Table(
        box=SIMPLE_HEAD, caption=Text(caption), caption_justify="left", padding=(0, 1, 0, 0)
    )
    table.add_column("Method", overflow="fold", min_width=8)
    for title, _ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for summary in summaries:
        cells = [cell(summary).text for _, cell in columns]
        style = "red" if summary.failure else ""
        # As Text: the brackets of a method's settings are no markup.
        table.add_row(*map(Text, (summary.method.replace("+", "\n+"), *cells)), style=style)
    return table


def _folded(title: str) -> str:
    """A judge's column over three lines: the judge, the task, the metric."""
    judge, task, *metric = title.split(" ", 2)
    return "\n".join((judge, task, *metric))


def _failed_lines(rows: Sequence[CellResult]) -> list[str]:
    """One line for each method, base and reason, however many seeds died of it."""
    failed = [row for row in rows if row.status == "failed"]
    reasons = dict.fromkeys((row.method, row.base, reason_of(row)) for row in failed)
    return [f"{method} ({base}) failed: {shorten(reason, 200)}" for method, base, reason in reasons]


def plain_text(table: Table, *, width: int = 120) -> str:
    """The table without colours or control codes, for a log or a pipe."""
    from rich.console import Console

    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
