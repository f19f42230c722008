"""The table of the finals, as people read it in a terminal and on a page."""

from __future__ import annotations

from deltakit.choose.outcome import FinalRow, Outcome, shown
from deltakit.compare.report.number_format import MISSING, format_count, format_ratio


def finals_headers(outcome: Outcome) -> tuple[str, ...]:
    """The titles of the columns."""
    score = f"{outcome.metric.title} on test [95 %]"
    return ("method", "rate", score, "seeds", "parameters kept", "time of a text")


def finals_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The cells of each row, the best score first."""
    rank = outcome.metric.direction.rank
    ranked = sorted(outcome.rows, key=lambda row: -rank(row.score))
    return [_cells(outcome, row) for row in ranked]


def _cells(outcome: Outcome, row: FinalRow) -> tuple[str, ...]:
    return (
        row.name,
        MISSING if row.lr is None else f"{row.lr:g}",
        shown(outcome.metric, row),
        str(row.seeds),
        format_count(row.deployed),
        MISSING if row.latency is None else f"{format_ratio(row.latency)} base",
    )
