"""Verdicts of other libraries in a table: titles, means over seeds, and how to read them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import NamedTuple

from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.summary import RowSummary


class MeanVerdict(NamedTuple):
    """A row's score by another library, over the seeds that were judged.

    Attributes:
        value: the mean.
        stderr: the library's standard error, of one seed; with several the mean of theirs.
        seeds: how many were judged.
    """

    value: float
    stderr: float | None
    seeds: int

    def __str__(self) -> str:
        error = "" if self.stderr is None else f" ± {self.stderr:.4f}"
        return f"{self.value:.4f}{error}"


def titles_of(summaries: Sequence[RowSummary]) -> tuple[str, ...]:
    """The titles of all verdicts, in the order of the rows."""
    return tuple(dict.fromkeys(each.title for row in summaries for each in row.verdicts))


def mean_verdict(row: RowSummary, title: str) -> MeanVerdict | None:
    """The row's verdict of that title, or None."""
    found = [each for each in row.verdicts if each.title == title]
    errors = [each.stderr for each in found if each.stderr is not None]
    if not found:
        return None
    error = fmean(errors) if len(errors) == len(found) else None
    return MeanVerdict(fmean(each.value for each in found), error, len(found))


def verdict_help(summaries: Sequence[RowSummary], title: str) -> str:
    """The explanation of a judge's column: the library, its version, and the examples."""
    found = [each for row in summaries for each in row.verdicts if each.title == title]
    first, versions = found[0], ", ".join(sorted({each.version for each in found}))
    where = "folded into the weights of the base" if first.merged else "on the base"
    asked = "" if first.examples is None else f" Asked of {first.examples:,} examples."
    return (
        f"The score of {first.judge} {versions} with the delta {where}, and the standard error "
        f"that it gives.{asked}"
    )


def about_judges(summaries: Sequence[RowSummary], run: RunRecord) -> Iterator[str]:
    """The sentence under a table with verdicts."""
    found = [each for row in summaries for each in row.verdicts]
    judges = dict.fromkeys(f"{each.judge} {each.version}" for each in found)
    floor = run.role("floor")
    if judges:
        base = "" if floor is None else f" The row {floor} is the base without a delta."
        yield f"{' and '.join(judges)}: the score and its own standard error.{base}"
