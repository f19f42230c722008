"""The report of a run: the files that people open, and the table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltakit._files import atomic_path, write_text
from deltakit.compare.records.result import CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report import html
from deltakit.compare.report.cost_views import picture
from deltakit.compare.report.extra_tables import curve_csv, latency_csv, verdicts_csv
from deltakit.compare.report.page import CellExtras, page_of, title_of
from deltakit.compare.report.summary import PredictionsOf, metric_of, summarise
from deltakit.compare.report.tables import results_csv, table_html, table_md, table_tex

if TYPE_CHECKING:
    pass


def write_reports(
    out: Path,
    rows: Sequence[CellResult],
    predictions: PredictionsOf,
    run: RunRecord,
    insights: CellExtras | None = None,
) -> None:
    """Writes every file of the report, each whole or not at all.

    Args:
        out: the run's folder.
        rows: its cells, in the order of the table.
        predictions: those of the finished cells, by method, base and seed.
        run: its roles name the floor and the ceiling. The page prints its plan and measuring
            protocol, its notes at the top, and the rest as provenance.
        insights: the extra records of the cells, for the page.

    Raises:
        InvalidConfig: the rows belong to several tasks, or were tested on different splits.
    """
    insights = insights or CellExtras()
    summaries = summarise(rows, predictions, run, insights.verdicts)
    plot = picture(summaries, title=title_of(rows, run), metric=metric_of(rows))
    write_text(out / "results.csv", results_csv(rows))
    write_text(out / "table.md", table_md(summaries, run))
    write_text(out / "table.tex", table_tex(summaries))
    write_text(out / "table.html", table_html(summaries))
    for name, text in (
        ("latency.csv", latency_csv(insights.latencies)),
        ("pace.csv", curve_csv(insights.learning_curves)),
        ("judged.csv", verdicts_csv(insights.verdicts)),
    ):
        if text.strip():
            write_text(out / name, text)
    write_text(out / "pareto.svg", plot.svg)
    with atomic_path(out / "pareto.png") as temporary:
        temporary.write_bytes(plot.png)
    page = page_of(summaries, rows, run, insights)
    write_text(out / "report.html", html.render(page))


# -------------------------------------------------------------------------------- the terminal
