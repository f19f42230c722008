"""Scores over the amount of training data: one table, one plot and one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from deltakit.compare.report.extra_tables import TextTable
from deltakit.compare.report.html import rendered_page
from deltakit.compare.report.pareto import INK, PALETTE, STYLE, Plot, rendered
from deltakit.compare.report.summary import RowSummary
from deltakit.compare.stats.metrics import Metric
from deltakit.compare.stats.significance import LEVEL

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BySize = Mapping[int, Sequence[RowSummary]]
"""The rows of each run, by the number of its training examples, the fewest first."""
Row = tuple[str, str]
_ASIDE = 0.015
"""How far rows are drawn from each other at one size, so that their intervals can be seen."""
_DASHES = ("-", "--", ":", "-.")


def sizes_md(by_size: BySize, metric: Metric, floor: str) -> str:
    """The table in Markdown: a row for each method and base, a column for each size.

    The last column is the fewest examples at which a row beats the floor on the same base.

    Args:
        by_size: the rows of all runs.
        metric: of the scores.
        floor: the label of the floor.
    """
    table = _tabulated(sizes_table(by_size, metric, floor), "github")
    return "\n\n".join(filter(None, (table, _about(by_size)))) + "\n"


def _about(by_size: BySize) -> str:
    """A sentence on what p is about where rows have one seed each."""
    gaps = (row.vs_floor for rows in by_size.values() for row in rows)
    if any(gap is not None and gap.about == "models" for gap in gaps):
        return "With one seed, p is about these trained models, and not about other seeds."
    return ""


def sizes_html(by_size: BySize, metric: Metric, floor: str) -> str:
    """The same table as an element of HTML."""
    return _tabulated(sizes_table(by_size, metric, floor), "html")


def _tabulated(table: TextTable, form: str) -> str:
    from tabulate import tabulate

    return str(tabulate(table.lines, table.titles, tablefmt=form, disable_numparse=True))


def sizes_table(by_size: BySize, metric: Metric, floor: str) -> TextTable:
    """The table of `sizes_md` in words."""
    rows = _rows(by_size)
    several = _several(rows)
    lines = tuple(
        (
            _label(row, several),
            *(_cell(found.get(size)) for size in by_size),
            "–" if row[0] == floor else _start(found, metric),
        )
        for row, found in rows.items()
    )
    titles = (metric.title, *(f"{size:,}" for size in by_size), f"first beats {floor} at")
    return TextTable(titles=titles, lines=lines)


def sizes_page(
    by_size: BySize,
    metric: Metric,
    floor: str,
    *,
    title: str,
    answers: Mapping[int, str],
    svg: str,
) -> str:
    """The page of all sizes as HTML: the answers, the plot, the table.

    Args:
        by_size: the rows of all runs.
        metric: of the scores.
        floor: the label of the floor.
        title: of the page.
        answers: each run's sentence, by size.
        svg: the plot.
    """
    table = sizes_table(by_size, metric, floor)
    return rendered_page(
        "sizes.html.j2",
        title=title,
        answers=answers,
        svg=svg,
        table=table,
        about=_about(by_size),
    )


def _rows(by_size: BySize) -> dict[Row, dict[int, RowSummary]]:
    found: dict[Row, dict[int, RowSummary]] = {}
    for size, rows in by_size.items():
        for row in rows:
            found.setdefault((row.method, row.base), {})[size] = row
    return found


def _several(rows: Iterable[Row]) -> bool:
    return len({base for _, base in rows}) > 1


def _label(row: Row, several: bool) -> str:
    """The name of a row, with its base where there are several."""
    return " on ".join(row) if several else row[0]


def _cell(row: RowSummary | None) -> str:
    if row is None or row.score is None:
        return "–"
    return f"{row.score} {row.group}".rstrip()


def _start(found: Mapping[int, RowSummary], metric: Metric) -> str:
    """The fewest examples at which a row is above the floor, and its p-value."""
    for size, row in found.items():
        gap = row.vs_floor
        if gap is not None and gap.p <= LEVEL and metric.direction.rank(gap.points) > 0:
            return f"{size:,} (p = {gap.p:.2g})"
    return "–"


def sizes_plot(by_size: BySize, metric: Metric, title: str) -> Plot:
    """Each row's mean score over the number of training examples, which has a log scale."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        figure = Figure(figsize=(7.5, 4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        rows = _rows(by_size)
        for number, (row, found) in enumerate(rows.items()):
            aside = 1 + _ASIDE * (number - (len(rows) - 1) / 2)
            scores = {size * aside: score for size, score in _scored(found)}
            _draw(axes, number, _label(row, _several(rows)), scores)
        axes.set_xscale("log")
        axes.set_xticks(list(by_size), [f"{size:,}" for size in by_size], minor=False)
        axes.minorticks_off()
        axes.set_xlabel("training examples")
        axes.set_ylabel(f"{metric.title}{metric.unit.value}")
        axes.set_title(title, loc="left", fontsize=9, color=INK)
        figure.legend(fontsize=7, loc="outside right upper")  # where it hides no interval
        return Plot(png=rendered(figure, "png"), svg=rendered(figure, "svg").decode())


def _scored(found: Mapping[int, RowSummary]) -> Iterator[tuple[int, tuple[float, float, float]]]:
    for size, row in found.items():
        if row.score is not None:
            mean = row.score.mean
            low, high = row.score.low, row.score.high
            yield size, (mean, mean if low is None else low, mean if high is None else high)


def _draw(
    axes: Axes, number: int, label: str, scores: Mapping[float, tuple[float, float, float]]
) -> None:
    """One line with its intervals; colours repeat with other dashes."""
    colour = PALETTE[number % len(PALETTE)]
    style = _DASHES[number // len(PALETTE) % len(_DASHES)]
    means = [mean for mean, _, _ in scores.values()]
    ends = [[max(0.0, m - low) for m, low, _ in scores.values()]]
    ends.append([max(0.0, high - m) for m, _, high in scores.values()])
    axes.errorbar(
        list(scores), means, yerr=ends, label=label, color=colour, linestyle=style, marker="o",
        markersize=3, linewidth=1.2, elinewidth=0.6, capsize=2,
    )  # fmt: skip
