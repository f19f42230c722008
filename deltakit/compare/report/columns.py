"""The table that people read: its columns, and the notes under it.

It is one tuple, `COLUMNS_FOR_PEOPLE`: a column is a title, an explanation and a function from a
`RowSummary` to a `TableCell`. Markdown, LaTeX, HTML, the terminal and the page all draw from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from deltakit.compare.records.forgotten import DRIFT, MEASURES
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.number_format import (
    MISSING,
    format_bytes,
    format_count,
    format_duration,
    format_milliseconds,
    format_numbers,
    format_p_value,
    format_percent,
    format_ratio,
    shorten,
)
from deltakit.compare.report.summary import (
    ForgottenSummary,
    RowSummary,
    machines_of,
    metric_of,
)
from deltakit.compare.report.verdicts import (
    about_judges,
    mean_verdict,
    titles_of,
    verdict_help,
)
from deltakit.compare.stats.metrics import Direction, Metric, Unit
from deltakit.compare.stats.significance import Difference


@dataclass(frozen=True, kw_only=True)
class TableCell:
    """One field of a table.

    Attributes:
        text: what people read.
        note: what belongs to it, in brackets or beneath.
        detail: lines that only a page has room for.
        sort: the sort key of the field; None for a missing value.
    """

    text: str
    note: str = ""
    detail: str = ""
    sort: float | str | None = None

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


ABSENT = TableCell(text=MISSING)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table that people read."""

    title: str
    help: str
    cell: Callable[[RowSummary], TableCell]


def _method_cell(summary: RowSummary) -> TableCell:
    return TableCell(text=summary.method, sort=summary.method)


def _base_cell(summary: RowSummary) -> TableCell:
    return TableCell(text=summary.base, sort=summary.base)


def _score_cell(summary: RowSummary) -> TableCell:
    if summary.failure is not None:
        return TableCell(text=shorten(summary.failure))
    if summary.score is None:
        return ABSENT
    words = f"{summary.score} {summary.group}".rstrip()
    return TableCell(text=words, note=summary.seeds_done, sort=summary.score.mean)


def _difference_cell(difference: Difference | None, summary: RowSummary) -> TableCell:
    if difference is None or summary.score is None:
        return ABSENT
    unit = summary.score.unit
    low, high = (unit.change(points) for points in (difference.low, difference.high))
    return TableCell(
        text=unit.change(difference.points),
        note=f"p {format_p_value(difference.p)}",
        detail=f"{low} to {high}{_findable(difference, unit)}",
        sort=difference.points,
    )


def _findable(difference: Difference, unit: Unit) -> str:
    if difference.detectable is None:
        return ""
    return f"\nfinds {unit.distance(difference.detectable)}"


def _trained_cell(summary: RowSummary) -> TableCell:
    trained, share = summary.mean("trained_params"), summary.mean("trained_pct")
    if trained is None:
        return ABSENT
    note = "" if share is None else format_percent(share)
    return TableCell(text=format_count(trained), note=note, sort=trained)


_EDGES = {"low": " ↓", "high": " ↑"}


def _rate_cell(summary: RowSummary) -> TableCell:
    rates = {(row.lr, row.lr_edge) for row in summary.done if row.lr is not None}
    if not rates:
        return ABSENT
    words = (f"{lr:g}{_EDGES.get(edge or '', '')}" for lr, edge in sorted(rates, key=str))
    return TableCell(text=", ".join(words), sort=min(lr for lr, _ in rates))


def measured(column: str, words: Callable[[float], str]) -> Callable[[RowSummary], TableCell]:
    """The cell of a column of ``results.csv``: its mean over seeds, put into `words`."""

    def cell(summary: RowSummary) -> TableCell:
        value = summary.mean(column)
        return ABSENT if value is None else TableCell(text=words(value), sort=value)

    return cell


def timed(column: str, words: Callable[[float], str]) -> Callable[[RowSummary], TableCell]:
    """As `measured`, for times, which do not compare between machines."""

    def cell(summary: RowSummary) -> TableCell:
        value = summary.mean(column)
        if value is None:
            return ABSENT
        return TableCell(text=f"{words(value)} {summary.mark}".rstrip(), sort=value)

    return cell


def forgotten_cell(summary: RowSummary) -> TableCell:
    """The forgetting of a row, with half of its interval where there are several seeds."""
    found = summary.forgotten
    if found is None:
        return ABSENT
    half = () if found.high is None or found.seeds < 2 else (found.high - found.mean,)
    return TableCell(
        text=" ± ".join(_changes(found, found.mean, *half)),
        detail=_ends_of(found),
        sort=found.mean,
    )


def _changes(found: ForgottenSummary, mean: float, *others: float) -> tuple[str, ...]:
    """The mean with its sign, which a drift has not, and other numbers."""
    words = format_numbers(mean, *others)
    sign = "+" if mean > 0 and found.kind != DRIFT else ""
    return (sign + words[0], *words[1:])


def _ends_of(found: ForgottenSummary) -> str:
    """The ends of the interval of a single seed."""
    if found.low is None or found.high is None or found.seeds > 1:
        return ""
    _, low, high = format_numbers(found.mean, found.low, found.high)
    return f"{low} to {high}"


COLUMNS_FOR_PEOPLE = (
    Column(
        title="Method",
        help="How the model was adapted.",
        cell=_method_cell,
    ),
    Column(
        title="Score %",
        help="On the test split. With several seeds, the mean and half of Student's 95 % interval "
        "over them; with one, a 95 % interval over test examples (Wilson's for a share of right "
        "answers, Student's for another mean, a bootstrap's for the rest). Rows that share a "
        "letter cannot be told apart (all pairs, Holm).",
        cell=_score_cell,
    ),
    Column(
        title="vs floor",
        help="The score minus the floor's, and p, adjusted for the number of rows (Holm). The "
        "floor trains nothing but the task head: what does not beat it has not "
        "earned its parameters.",
        cell=lambda summary: _difference_cell(summary.vs_floor, summary),
    ),
    Column(
        title="vs ceiling",
        help="The same against the ceiling, which trains every weight; on a quantised base, which "
        "has none, against the one in full precision.",
        cell=lambda summary: _difference_cell(summary.vs_ceiling, summary),
    ),
    Column(
        title="Trained params",
        help="Parameters that training changes, the task head left out, and their share of all "
        "parameters of the base, embeddings included.",
        cell=_trained_cell,
    ),
    Column(
        title="Deployed params",
        help="Parameters that must be kept, in addition to the base, to run it; no task head.",
        cell=measured("deployed_params", format_count),
    ),
    Column(
        title="Delta on disk",
        help="Size of the saved delta, the task head included.",
        cell=measured("delta_bytes", format_bytes),
    ),
    Column(
        title="Train step × full",
        help="Median time of one training step over that of full fine-tuning in fp32, measured "
        "in alternation. Below 1 is faster.",
        cell=measured("train_step_vs_full", format_ratio),
    ),
    Column(
        title="Train memory peak",
        help="The most memory that a training step needs.",
        cell=measured("train_peak_bytes", format_bytes),
    ),
    Column(
        title="Latency × base, b1",
        help="Median time of a forward pass over that of the bare base, measured in alternation, "
        "for one text at a time.",
        cell=measured("latency_vs_base_b1", format_ratio),
    ),
    Column(
        title="Latency × base, b8",
        help="The same for eight texts at a time.",
        cell=measured("latency_vs_base_b8", format_ratio),
    ),
    Column(
        title="Merged × base, b1",
        help="The same for one text, after the delta was folded into the weights of the base; "
        "absent where it does not fold.",
        cell=measured("merged_latency_vs_base_b1", format_ratio),
    ),
    Column(
        title="Train time",
        help="The whole of this row's own training.",
        cell=timed("train_seconds", format_duration),
    ),
    Column(
        title="Stage 1 time",
        help="Training of the deltas that this row composes, whether in this run or before.",
        cell=timed("stage1_seconds", format_duration),
    ),
)
"""The table, as people read it."""

BASE = Column(
    title="Base", help="How the weights of the base are stored while it runs.", cell=_base_cell
)
RATE = Column(
    title="Learning rate",
    help="The best of the rates that were tried, on the validation split. Marked where it is the "
    "lowest (↓) or the highest (↑) of them: a wider grid might hold a better one.",
    cell=_rate_cell,
)
VS_FULL = Column(
    title="vs full precision",
    help="The score minus that of the same method on the base in full precision, and p: what "
    "holding the base this way costs.",
    cell=lambda summary: _difference_cell(summary.vs_full, summary),
)
VS_BASELINE = Column(
    title="vs baseline",
    help="The same against the row that --baseline names.",
    cell=lambda summary: _difference_cell(summary.vs_baseline, summary),
)
FORGOTTEN = Column(
    title="Forgotten",
    help="How much worse a general text is read with the delta than without it: more nats a token, "
    "or the drift of the last hidden states, as the sentence under the table says. With several "
    "seeds, the mean and half of Student's 95 % interval over them.",
    cell=forgotten_cell,
)
COSTS_OF_BASES = (
    Column(
        title="Base size",
        help="Bytes of the base's weights as they are held, statistics of quantisation included.",
        cell=measured("base_bytes", format_bytes),
    ),
    Column(
        title="Train step",
        help="Median time of one training step.",
        cell=timed("train_step_ms", format_milliseconds),
    ),
    Column(
        title="Latency, b1",
        help="Median time of a forward pass for one text.",
        cell=timed("latency_ms_b1", format_milliseconds),
    ),
    Column(
        title="Inference memory peak",
        help="The most memory that a forward pass for eight texts needs.",
        cell=measured("infer_peak_bytes", format_bytes),
    ),
)
"""What ratios to the same base do not show."""


def columns_for(summaries: Sequence[RowSummary]) -> tuple[Column, ...]:
    """The columns of a run's table: several bases and a search for rates add theirs."""
    method, score, *rest = COLUMNS_FOR_PEOPLE
    if any(summary.forgotten for summary in summaries):
        place = 1 + [column.title for column in rest].index("vs ceiling")
        rest.insert(place, FORGOTTEN)
    score = replace(score, title=score_title(summaries))
    if any(summary.vs_baseline for summary in summaries):
        rest = [VS_BASELINE, *rest]
    rest = [*verdict_columns(summaries), *rest]
    if any(summary.mean("trials") for summary in summaries):
        rest = [*rest, RATE]
    if len({summary.base for summary in summaries}) == 1:
        return (method, score, *rest)
    return (method, BASE, score, VS_FULL, *rest, *COSTS_OF_BASES)


def verdict_columns(summaries: Sequence[RowSummary]) -> tuple[Column, ...]:
    """A column for each question of another library's."""
    return tuple(
        Column(title=title, help=verdict_help(summaries, title), cell=_verdict_cell(title))
        for title in titles_of(summaries)
    )


def _verdict_cell(title: str) -> Callable[[RowSummary], TableCell]:
    def cell(summary: RowSummary) -> TableCell:
        mean = mean_verdict(summary, title)
        if mean is None:
            return ABSENT
        note = f"{mean.seeds} seeds" if mean.seeds > 1 else ""
        return TableCell(text=str(mean), note=note, sort=mean.value)

    return cell


def score_title(summaries: Sequence[RowSummary]) -> str:
    """The title over the scores: their unit, and an arrow where lower ones are better."""
    metric = metric_of(row for summary in summaries for row in summary.done)
    return f"Score{metric.unit.value}{metric.direction.value}"


def legend(summaries: Sequence[RowSummary], run: RunRecord) -> tuple[str, ...]:
    """The sentences under a table."""
    ends = [(name, run.role(name.lower())) for name in ("Floor", "Ceiling", "Baseline")]
    rows = [row for summary in summaries for row in summary.done]
    tested = sorted({row.n_test for row in rows if row.n_test is not None})
    lines = [f"{name}: {label}." for name, label in ends if label is not None]
    metric = metric_of(rows)
    if tested:
        examples = " or ".join(f"{n:,}" for n in tested)
        lines.append(f"Score: {_scale(metric)} on {examples} test examples.")
    lines += _measures(summaries, run)
    told = [note for task in sorted({row.task for row in rows}) for note in run.notes_on(task)]
    judged = about_judges(summaries, run)
    return (*lines, *judged, *told, *_how_sure(summaries, metric.unit), *_places(machines_of(rows)))


def _measures(summaries: Sequence[RowSummary], run: RunRecord) -> Iterator[str]:
    """What the column `FORGOTTEN` is; a table has one measure, as a rule."""
    kinds = dict.fromkeys(each.forgotten.kind for each in summaries if each.forgotten is not None)
    text = "" if run.general is None else f", on {run.general}"
    for kind in kinds:
        yield f"Forgotten: {MEASURES[kind]}{text}."


def _scale(metric: Metric) -> str:
    unit = " in per cent" if metric.unit is Unit.PERCENT else ""
    order = ", lower is better," if metric.direction is Direction.LOWER else ""
    return f"{metric.title}{unit}{order}"


def _places(machines: Sequence[str]) -> Iterator[str]:
    if len(machines) > 1:
        named = ", ".join(f"[{number}] {name}" for number, name in enumerate(machines, start=1))
        yield f"Times are of {named}: they do not compare, their ratios do."


def _how_sure(summaries: Sequence[RowSummary], unit: Unit) -> Iterator[str]:
    """What the differences are about, and how small a one this run could have found."""
    found = [
        difference
        for summary in summaries
        for difference in (summary.vs_baseline, summary.vs_floor, summary.vs_ceiling)
        if difference is not None
    ]
    about = {difference.about for difference in found}
    if "models" in about:
        which = "One seed" if about == {"models"} else "Between rows of one seed each"
        yield f"{which}: p is about these trained models, and says nothing about other seeds."
    sizes = [d.detectable for d in found if d.detectable is not None]
    if sizes:
        yield (
            f"A difference of {unit.distance(min(sizes))} to {unit.distance(max(sizes))}"
            f"{' points' if unit is Unit.PERCENT else ''} is what this run finds 4 times in 5."
        )
