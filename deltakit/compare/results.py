"""The results of a run: its rows, its record and its folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.records.run import RunRecord
from deltakit.compare.records.verdict import Verdict
from deltakit.compare.report.frame import answer, cells_frame, table_frame
from deltakit.compare.report.summary import RowSummary, summarise
from deltakit.compare.report.tables import table_html

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True, repr=False)
class Results:
    """A run that has ended.

    Attributes:
        folder: the run folder.
        results: every cell's row, in the plan's order.
        predictions: per-example predictions by (method, base, seed).
        run: the record of the run, ``run.json``.
        reused: how many cells an earlier run had finished.
        verdicts: what other libraries say, by (method, base, seed).
    """

    folder: Path
    results: tuple[CellResult, ...]
    predictions: dict[tuple[str, str, int], Predictions]
    run: RunRecord
    reused: int
    verdicts: Mapping[tuple[str, str, int], tuple[Verdict, ...]] = field(default_factory=dict)

    @property
    def failures(self) -> tuple[CellResult, ...]:
        """The cells that failed."""
        return tuple(result for result in self.results if result.status == "failed")

    @property
    def frame(self) -> "pd.DataFrame":
        """One row a cell, with the columns of ``results.csv``."""
        return cells_frame(self.results)

    @property
    def table(self) -> "pd.DataFrame":
        """One row a method and base, over its seeds, with scores as people read them."""
        return table_frame(self.summaries())

    @property
    def answer(self) -> str:
        """The best method in one sentence, with those that cannot be told apart from it."""
        return answer(self.summaries(), self.run)

    @property
    def page(self) -> Path:
        """The report, one page that needs no other file."""
        return self.folder / "report.html"

    def summaries(self) -> tuple[RowSummary, ...]:
        """The rows of the table: each method and base over its seeds."""
        return summarise(self.results, self.predictions, self.run, self.verdicts)

    def __repr__(self) -> str:
        from deltakit.compare.report.terminal import plain_text, terminal_table

        table = terminal_table(self.results, self.predictions, self.run, self.verdicts)
        return f"{self.answer}\n{plain_text(table)}{self.page} has the whole comparison"

    def _repr_html_(self) -> str:
        return f"<p>{escape(self.answer)}</p>\n{table_html(self.summaries())}"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A run after another library has judged its rows.

    Attributes:
        results: the run; `Results.verdicts` has what was said.
        failed: the rows that could not be judged.
    """

    results: Results
    failed: tuple[str, ...]
