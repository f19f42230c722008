"""The content of a comparison's page, gathered from its rows and extra records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltakit.compare.records.latency import ShapeTime
from deltakit.compare.records.result import COLUMNS, CellResult, Row
from deltakit.compare.records.run import RunRecord
from deltakit.compare.records.training import LearningCurve
from deltakit.compare.records.trial import Choice
from deltakit.compare.records.verdict import Verdict
from deltakit.compare.report import charts, html
from deltakit.compare.report.charts import Found, Layers
from deltakit.compare.report.columns import BASE, Column, columns_for, legend
from deltakit.compare.report.cost_views import views
from deltakit.compare.report.extra_tables import (
    curve_table,
    latency_table,
    mean_curves,
    time_to_score_of,
)
from deltakit.compare.report.frame import answer
from deltakit.compare.report.number_format import shorten
from deltakit.compare.report.published import CLAIMS, ClaimInput
from deltakit.compare.report.summary import RowSummary, metric_of, reason_of
from deltakit.compare.stats.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class CellExtras:
    """The extra records of finished cells, by method, base and seed."""

    searches: Mapping[tuple[str, str, int], Choice] = field(default_factory=dict)
    found: Mapping[tuple[str, str, int], Found] = field(default_factory=dict)
    learning_curves: Mapping[tuple[str, str, int], LearningCurve] = field(default_factory=dict)
    latencies: Mapping[tuple[str, str, int], tuple[ShapeTime, ...]] = field(default_factory=dict)
    verdicts: Mapping[tuple[str, str, int], tuple[Verdict, ...]] = field(default_factory=dict)

    def choices(self, rows: Iterable[Row]) -> dict[Row, Choice]:
        """The search of each of the rows that had one; its seeds have it in common."""
        of = {(method, base): choice for (method, base, _), choice in self.searches.items()}
        return {row: of[row] for row in rows if row in of}

    def means(self, rows: Iterable[Row]) -> dict[Row, Found]:
        """The diagnostics of each row's model, as a mean over its seeds."""
        of: dict[Row, list[Found]] = {}
        for (method, base, _), found in self.found.items():
            of.setdefault((method, base), []).append(found)
        return {row: charts.mean_of(of[row]) for row in rows if row in of}


def page_of(
    summaries: Sequence[RowSummary],
    rows: Sequence[CellResult],
    run: RunRecord,
    insights: CellExtras,
) -> html.Page:
    """The page of a run."""
    columns = columns_for(summaries)
    shown = _columns_with_values(rows)
    names, metric = _names(summaries), metric_of(rows)
    found, choices = insights.means(names), insights.choices(names)
    evidence = ClaimInput(summaries=summaries, found=found, names=names, run=run)
    return html.Page(
        title=title_of(rows, run),
        answer=answer(summaries, run),
        facts=_facts(summaries, rows, run),
        columns=columns,
        lines=[_line(summary, columns) for summary in summaries],
        legend=legend(summaries, run),
        views=views(summaries, metric),
        claims=[(claim, claim.figures(evidence)) for claim in CLAIMS],
        curves=charts.curves(choices, names, metric),
        learning_curves=_learning_curves(summaries, run, insights, names, metric),
        latency=latency_table(insights.latencies, summaries, names),
        maps=list(_maps(found, names)),
        limits=list(_limits(summaries, rows, run)),
        notes=run.notes,
        protocol=_protocol(run),
        failed=_failed(summaries, rows, choices),
        failures=[_failure(row) for row in rows if row.status == "failed"],
        cell_columns=shown,
        cells=[[row.to_dict()[column] for column in shown] for row in rows],
        provenance=_provenance(run),
    )


def title_of(rows: Sequence[CellResult], run: RunRecord) -> str:
    """The title: the task and the model."""
    task = rows[0].task if rows else run.task.name
    return " · ".join(part for part in (task, run.model.name) if part) or "Comparison"


def _protocol(run: RunRecord) -> dict[str, Any]:
    """The plan, and how often things were measured."""
    measured = {} if run.protocol is None else {"measuring": run.protocol.to_dict()}
    return {**run.plan.to_dict(), **measured}


def _provenance(run: RunRecord) -> dict[str, Any]:
    """The rest of the record."""
    shown_elsewhere = ("plan", "notes", "protocol")
    return {key: value for key, value in run.to_dict().items() if key not in shown_elsewhere}


def _names(summaries: Sequence[RowSummary]) -> dict[Row, str]:
    """What the page calls each row: its method, and its base where there are several."""
    several = len({summary.base for summary in summaries}) > 1
    return {
        (row.method, row.base): f"{row.method} on {row.base}" if several else row.method
        for row in summaries
    }


def _line(summary: RowSummary, columns: Sequence[Column]) -> html.TableRow:
    """Failed rows: the name, and the reason with the base where there are several."""
    where = f"on {summary.base}, " if BASE in columns else ""
    failure = None if summary.failure is None else shorten(where + summary.failure, 300)
    return html.TableRow(cells=tuple(column.cell(summary) for column in columns), failure=failure)


def _failure(row: CellResult) -> html.Failure:
    return html.Failure(method=row.method, base=row.base, seed=row.seed, reason=reason_of(row))


def _failed(
    summaries: Sequence[RowSummary], rows: Sequence[CellResult], choices: Mapping[Row, Choice]
) -> str:
    """How many cells and trials failed, and how many cells collapsed."""
    collapsed = sum(summary.collapsed for summary in summaries)
    cells = sum(row.status == "failed" for row in rows)
    trials = [trial for choice in choices.values() for trial in choice.trials]
    lost = sum(trial.score is None for trial in trials)
    counts = [f"{cells:,} of {_many(len(rows), 'cell')} failed"]
    counts += [f"{collapsed:,} predict one class for everything"] if collapsed else []
    counts += [f"{lost:,} of {_many(len(trials), 'trial')} failed"] if trials else []
    return ", ".join(counts) + "."


def _facts(
    summaries: Sequence[RowSummary], rows: Sequence[CellResult], run: RunRecord
) -> list[str]:
    seeds = len({row.seed for row in rows})
    failed = sum(row.status == "failed" for row in rows)
    facts = [_many(len(summaries), "row"), _many(seeds, "seed"), _many(len(rows), "cell")]
    facts += [f"{failed} failed"] if failed else []
    return [*facts, *([run.created] if run.created else [])]


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _columns_with_values(rows: Sequence[CellResult]) -> list[str]:
    cells = [row.to_dict() for row in rows]
    return [name for name in COLUMNS if any(cell[name] is not None for cell in cells)]


def _learning_curves(
    summaries: Sequence[RowSummary],
    run: RunRecord,
    insights: CellExtras,
    names: Mapping[Row, str],
    metric: Metric,
) -> html.CurveView | None:
    means = mean_curves(insights.learning_curves, summaries)
    found = time_to_score_of(means, run, metric)
    curves = None if found is None else charts.learning_curves(means, names, found.target, metric)
    if found is None or curves is None:
        return None
    return html.CurveView(curves=curves, sheet=curve_table(means, found, names, metric))


# ------------------------------------------------------------------------- inside, and the limits


def _maps(found: Mapping[Row, Found], names: Mapping[Row, str]) -> Iterator[html.LayerMap]:
    maps: tuple[tuple[str, str, Layers | None], ...] = (
        (
            "How far each block’s output moves",
            "Root mean square of the difference from the base’s output, over that of the base’s "
            "output. It holds all changes up to this block, those of the base’s own weights too. "
            "Shaded within each line.",
            charts.changes(found, names, "moved"),
        ),
        (
            "How large the change at each site is",
            "Root mean square of Δh over that of h at the site, in the layer. Positions added to "
            "the sequence (prefixes, prompts) change no h, so they have no line. Shaded within "
            "each line.",
            charts.changes(found, names, "changes"),
        ),
        (
            "What a fusion attends to",
            "Attention over the members, as a mean over the tokens. The members of a layer add up "
            "to 1; equal shares mean that the fusion does not tell them apart.",
            charts.attention(found, names),
        ),
        (
            "Where the tokens go",
            "The share of the tokens whose largest weight is a member’s or an expert’s. "
            f"{_dead_words(charts.dead(found, names))}",
            charts.load(found, names),
        ),
    )
    for title, text, layers in maps:
        if layers is not None:
            yield html.LayerMap(title=title, text=text, layers=layers)


NAMED = 12
"""Dead members that the page names."""


def _dead_words(dead: Sequence[str]) -> str:
    if not dead:
        return "Every one of them gets some."
    more = f" and {len(dead) - NAMED} more" if len(dead) > NAMED else ""
    return f"None goes to {len(dead)} of them: {'; '.join(dead[:NAMED])}{more}."


def _limits(
    summaries: Sequence[RowSummary], rows: Sequence[CellResult], run: RunRecord
) -> Iterator[str]:
    """What a reader must not take from this run."""
    seeds = sorted({len(summary.done) for summary in summaries if summary.done})
    if seeds in ([], [1]):
        yield (
            "One seed: how far another initialisation or another order of the data would move a "
            "score is not known. Intervals and p are about test examples alone."
        )
    else:
        words = " to ".join(dict.fromkeys(map(str, (seeds[0], seeds[-1]))))
        yield f"{words} seeds: the interval of a mean over so few is wide, and a guess itself."
    tested = sorted({row.n_test for row in rows if row.n_test is not None})
    if tested:
        yield (
            f"{' or '.join(f'{n:,}' for n in tested)} test examples: differences that are smaller "
            "than the intervals are wide may be there and not be seen."
        )
    yield "One task and one model: which method is ahead on others is not known."
    if not any(summary.mean("trials") for summary in summaries):
        yield (
            "No learning rate was searched for: a method may be behind only because its rate suits "
            "this task less."
        )
    edges = [summary.method for summary in summaries if any(row.lr_edge for row in summary.done)]
    if edges:
        yield (
            f"{', '.join(dict.fromkeys(edges))}: the best rate is at an edge of the grid, so a "
            "better one may lie outside."
        )
    failed = sum(row.status == "failed" for row in rows)
    if failed:
        yield f"{failed} of {len(rows)} cells failed: means are over those that finished."
    yield "Times are of the machine that took them: compare ratios, not seconds, with another’s."
