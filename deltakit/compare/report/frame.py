"""The results as data frames, and the answer in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deltakit.compare.records.result import COLUMNS, CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.summary import RowSummary, metric_of
from deltakit.compare.report.verdicts import mean_verdict, titles_of

if TYPE_CHECKING:
    import pandas as pd

MEASURED = (
    "trained_params",
    "trained_pct",
    "deployed_params",
    "delta_bytes",
    "train_step_ms",
    "train_step_vs_full",
    "train_peak_bytes",
    "infer_peak_bytes",
    "latency_ms_b1",
    "latency_vs_base_b1",
    "merged_latency_vs_base_b1",
    "train_seconds",
    "stage1_seconds",
)
"""The measured columns of the summarised table, each a mean over seeds."""


def cells_frame(results: Sequence[CellResult]) -> pd.DataFrame:
    """One row a cell, with the columns of ``results.csv``. An absent value is NA."""
    import pandas as pd

    rows = [result.to_dict() for result in results]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object).convert_dtypes()


def table_frame(summaries: Sequence[RowSummary]) -> pd.DataFrame:
    """One row a method and base, over its seeds. An absent value is NA.

    Scores are as people read them: in per cent where the metric is. ``p_vs_floor`` and its
    relatives are adjusted for the number of rows (Holm). What other libraries say is in columns
    such as ``lm-eval: arc_easy acc`` and ``lm-eval: arc_easy acc stderr``.
    """
    import pandas as pd

    titles = titles_of(summaries)
    rows = [{**_numbers(row), **_judged(row, titles)} for row in summaries]
    return pd.DataFrame(rows, dtype=object).convert_dtypes()


def _judged(row: RowSummary, titles: Sequence[str]) -> dict[str, float | None]:
    means = {title: mean_verdict(row, title) for title in titles}
    return {
        f"{title}{end}": value
        for title, mean in means.items()
        for end, value in (
            ("", None if mean is None else mean.value),
            (" stderr", None if mean is None else mean.stderr),
        )
    }


def _numbers(row: RowSummary) -> dict[str, Any]:
    score = row.score
    return {
        "method": row.method,
        "base": row.base,
        "seeds": len(row.done),
        "failed": len(row.failed),
        "score": None if score is None else score.mean,
        "score_low": None if score is None else score.low,
        "score_high": None if score is None else score.high,
        "group": row.group or None,
        "p_vs_floor": None if row.vs_floor is None else row.vs_floor.p,
        "p_vs_ceiling": None if row.vs_ceiling is None else row.vs_ceiling.p,
        **{column: row.mean(column) for column in MEASURED},
        **_forgotten(row),
    }


def _forgotten(row: RowSummary) -> dict[str, Any]:
    found = row.forgotten
    names = ("", "_low", "_high", "_kind")
    values = (None,) * 4 if found is None else (found.mean, found.low, found.high, found.kind)
    return {f"forgotten{name}": value for name, value in zip(names, values, strict=True)}


# ------------------------------------------------------------------------------------- the answer


def answer(summaries: Sequence[RowSummary], run: RunRecord) -> str:
    """The best method in one sentence, with the methods that cannot be told apart from it.

    The baselines (the majority class, the floor and the ceiling) are no candidates.
    """
    baselines = {run.constant, run.role("floor"), run.role("ceiling")}
    ranked = _ranked([row for row in summaries if row.method not in baselines])
    if not ranked:
        return "No method has a score: every cell failed, or only baselines were compared."
    best, *others = ranked
    score = f"{_name(best, ranked)} scores {'highest' if _up(best) else 'lowest'}, {_score(best)}"
    ties = [_name(row, ranked) for row in others if _tied(best, row)]
    return f"{score}{_verdict(best, ties, others)}."


def _ranked(rows: Sequence[RowSummary]) -> list[RowSummary]:
    """The rows that have a score, the best first."""
    scored = [(row, row.score.mean) for row in rows if row.score is not None]
    ordered = sorted(scored, key=lambda pair: -metric_of(pair[0].done).direction.rank(pair[1]))
    return [row for row, _ in ordered]


def _up(row: RowSummary) -> bool:
    return metric_of(row.done).direction.rank(1.0) > 0


def _name(row: RowSummary, rows: Sequence[RowSummary]) -> str:
    return f"{row.method} on {row.base}" if len({each.base for each in rows}) > 1 else row.method


def _score(row: RowSummary) -> str:
    metric = metric_of(row.done)
    seeds = "one seed" if len(row.done) == 1 else f"{len(row.done)} seeds"
    return f"{row.score}{metric.unit.value} {metric.title} with {seeds}"


def _tied(best: RowSummary, row: RowSummary) -> bool:
    """True if the two cannot be told apart: by their letters, or by the tests that give letters."""
    if best.group and row.group:
        return bool(set(best.group) & set(row.group))
    return (row.method, row.base) not in best.apart


def _verdict(best: RowSummary, ties: Sequence[str], others: Sequence[RowSummary]) -> str:
    alone = "" if len(best.done) > 1 else "; one seed does not say how another seed would end"
    if ties:
        return f", and cannot be told apart from {' or '.join(ties)}{alone}"
    if others:
        return (
            f", apart from all {len(others)} others{alone}"
            if len(others) > 1
            else (f", apart from the other method{alone}")
        )
    return f"; it is the only method{alone}"
