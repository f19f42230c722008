"""From cells to the table that people read: one row for each method and base, over its seeds.

The table is one tuple, `COLUMNS_FOR_PEOPLE`: a column is a title, an explanation and a function
from a `Summary` to a `Cell`. Markdown, LaTeX, HTML, the terminal and the page all draw from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deltakit.compare import schema
from deltakit.compare.contrasts import Row, Seeds, contrasts, letters
from deltakit.compare.metrics import METRICS, Better, Metric, Unit
from deltakit.compare.schema import CellResult, Predictions
from deltakit.compare.stats import Difference, across_seeds, collapsed
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    import pandas as pd

MISSING = "–"
"""What people see where there is no value. In ``results.csv`` it is an empty field."""

PredictionsOf = Mapping[tuple[str, str, int], Predictions]
"""The predictions of each finished cell, by method, base and seed."""

# ------------------------------------------------------------------- numbers as people say them


def shorten(text: str, width: int = 120) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def count(value: float) -> str:
    """A number of things: 1,234,567 is ``1.23 M``."""
    return _scaled(value, 1000, ("", "k", "M", "B", "T"))


def size(value: float) -> str:
    """A number of bytes: 4,718,592 is ``4.50 MiB``."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def duration(seconds: float) -> str:
    """A number of seconds: 80 is ``1 m 20 s``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} m"


def milliseconds(value: float) -> str:
    """A number of milliseconds, to three digits."""
    return f"{_digits(value)} ms"


def ratio(value: float) -> str:
    """A ratio: 1.084 is ``1.08×``."""
    return f"{value:.2f}×"


def percent(value: float) -> str:
    """A number of per cent, to three digits: 0.4321 is ``0.432 %``."""
    return f"{_digits(value)} %"


def probability(value: float) -> str:
    """A p value, to two digits: 0.02345 is ``0.023``."""
    if value < 0.001:
        return "< 0.001"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    power = 0
    # 999.5 would be printed as 1000 with three digits: it belongs to the next unit.
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / step, power + 1
    number = f"{value:.0f}" if power == 0 else _digits(value)
    return f"{number} {units[power]}".rstrip()


def _digits(value: float) -> str:
    """`value` with three digits, and no exponent."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")  # first, so that 0.9996 counts its places as 1
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(places, 0), 6)}f}"


# ------------------------------------------------------------------------- one row of the table


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score as people read it, with its 95 % interval: over seeds, or of one seed over examples.

    Attributes:
        mean: in per cent, where that is the metric's unit.
        low: lower end of the interval.
        high: upper end.
        seeds: how many there were.
        unit: how people read it.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: int
    unit: Unit = Unit.PERCENT

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return self.unit.words(self.mean)[0]
        if self.seeds > 1:
            return " ± ".join(self.unit.words(self.mean, (self.high - self.low) / 2))
        mean, low, high = self.unit.words(self.mean, self.low, self.high)
        return f"{mean} [{low}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One method on one base, over its seeds."""

    method: str
    base: str
    done: tuple[CellResult, ...]
    failed: tuple[CellResult, ...]
    score: Score | None
    vs_floor: Difference | None
    vs_ceiling: Difference | None
    vs_full: Difference | None = None
    """Against the same method on the base in full precision."""
    vs_baseline: Difference | None = None
    """Against the row that the user named."""
    group: str = ""
    """Rows that share a letter cannot be told apart; empty with a single seed."""
    collapsed: int = 0
    """How many of the seeds predict one class for everything."""
    mark: str = ""
    """Which machines its times are of, where the table has several."""

    def mean(self, column: str) -> float | None:
        """The mean of a numeric column over the finished seeds, or None where it has no value."""
        values = [value for row in self.done if (value := getattr(row, column)) is not None]
        return sum(values) / len(values) if values else None

    @property
    def seeds_done(self) -> str:
        """How many of the seeds have finished and how many came to nothing, in words."""
        words = []
        if self.failed:
            words.append(f"{len(self.done)} of {len(self.done) + len(self.failed)} seeds")
        if self.collapsed:
            words.append(f"{self.collapsed} collapsed")
        return ", ".join(words)

    @property
    def failure(self) -> str | None:
        """Why there is nothing to show, where every seed failed."""
        return None if self.done else f"failed: {reason_of(self.failed[0])}"


def reason_of(row: CellResult) -> str:
    """Why a cell failed, on one line."""
    return " ".join((row.reason or "no reason was recorded").split())


def summarise(
    rows: Sequence[CellResult], predictions: PredictionsOf, run: Mapping[str, Any]
) -> tuple[Summary, ...]:
    """One `Summary` for each method and base, in the order of first appearance, by method.

    Args:
        rows: the cells of one run.
        predictions: those of the finished cells; where they are missing, so are differences.
        run: what ``run.json`` holds; its "roles" name the floor and the ceiling, and its
            "full_precision" the base that other bases are compared with.

    Raises:
        InvalidConfig: the rows belong to several tasks, or have several metrics.
    """
    _check_one_task(rows)
    metric = metric_of(rows)
    groups: dict[tuple[str, str], list[CellResult]] = {}
    for row in rows:
        groups.setdefault((row.method, row.base), []).append(row)
    seeds = {key: _predictions(group, predictions) for key, group in groups.items()}
    methods = list(dict.fromkeys(method for method, _ in groups))
    full = str(run.get("full_precision"))
    scores = {key: _score(_done(group)) for key, group in groups.items()}
    ranked = sorted(groups, key=lambda key: -_rank(scores[key], metric))
    group_of = letters(seeds, ranked, metric)
    versus = {name: _versus(seeds, role(run, name), full, metric) for name in _REFERENCES}
    vs_full = contrasts(seeds, {key: (key[0], full) for key in seeds}, metric)
    machines = machines_of(rows)
    return tuple(
        Summary(
            method=method,
            base=base,
            done=_done(group),
            failed=tuple(row for row in group if row.status == "failed"),
            score=scores[method, base],
            vs_floor=versus["floor"].get((method, base)),
            vs_ceiling=versus["ceiling"].get((method, base)),
            vs_baseline=versus["baseline"].get((method, base)),
            vs_full=vs_full.get((method, base)),
            group=group_of.get((method, base), ""),
            collapsed=_collapsed(method, run, seeds[method, base]),
            mark=_mark(group, machines),
        )
        for (method, base), group in sorted(groups.items(), key=lambda g: methods.index(g[0][0]))
    )


def role(run: Mapping[str, Any], name: str) -> str | None:
    """The label of the method that is the "floor" or the "ceiling" of a run, if it has one."""
    label = (run.get("roles") or {}).get(name)
    return None if label is None else str(label)


def _check_one_task(rows: Sequence[CellResult]) -> None:
    tasks = sorted({row.task for row in rows})
    if len(tasks) > 1:
        raise InvalidConfig(
            f"rows of {len(tasks)} tasks ({', '.join(tasks)}) do not share a table. Report each "
            "task's run on its own."
        )


def machines_of(rows: Iterable[CellResult]) -> tuple[str, ...]:
    """What the rows were measured on."""
    return tuple(sorted({row.machine for row in rows if row.machine is not None}))


def _mark(rows: Sequence[CellResult], machines: Sequence[str]) -> str:
    """A row's machines by their numbers, where there are several at all."""
    if len(machines) < 2:
        return ""
    numbers = [str(1 + machines.index(name)) for name in machines_of(rows)]
    return f"[{', '.join(numbers)}]" if numbers else ""


def _done(rows: Sequence[CellResult]) -> tuple[CellResult, ...]:
    return tuple(row for row in rows if row.status == "done")


def _predictions(rows: Sequence[CellResult], predictions: PredictionsOf) -> Seeds:
    keys = {row.seed: (row.method, row.base, row.seed) for row in _done(rows)}
    return {seed: predictions[key] for seed, key in keys.items() if key in predictions}


def _rank(score: Score | None, metric: Metric) -> float:
    return -math.inf if score is None else metric.better.rank(score.mean)


def _collapsed(method: str, run: Mapping[str, Any], seeds: Seeds) -> int:
    """The constant prediction is one class for everything by design."""
    return 0 if method == run.get("constant") else sum(map(collapsed, seeds.values()))


def _score(done: Sequence[CellResult]) -> Score | None:
    scored = [row for row in done if row.score is not None]
    if not scored:
        return None
    unit = metric_of(done).unit
    mean, half = across_seeds([unit.shown(row.score) for row in scored if row.score is not None])
    if half is not None:
        return Score(mean=mean, low=mean - half, high=mean + half, seeds=len(scored), unit=unit)
    low, high = scored[0].score_low, scored[0].score_high
    return Score(
        mean=mean,
        low=None if low is None else unit.shown(low),
        high=None if high is None else unit.shown(high),
        seeds=1,
        unit=unit,
    )


def metric_of(rows: Iterable[CellResult]) -> Metric:
    """The metric of a run's rows; accuracy, where none of them says.

    Raises:
        InvalidConfig: they have several.
    """
    names = sorted({row.metric for row in rows if row.metric is not None})
    if len(names) > 1:
        raise InvalidConfig(
            f"rows of {len(names)} metrics ({', '.join(names)}) do not share a table. Report each "
            "metric's run on its own."
        )
    return METRICS.get(names[0] if names else "accuracy")


_REFERENCES = ("floor", "ceiling", "baseline")


def _versus(
    seeds: Mapping[Row, Seeds], label: str | None, full: str, metric: Metric
) -> dict[Row, Difference]:
    """Every row against the one labelled `label` on its own base, or else in full precision."""
    if label is None:
        return {}
    pairs = {(m, b): (label, b) if seeds.get((label, b)) else (label, full) for m, b in seeds}
    return contrasts(seeds, pairs, metric)


# ---------------------------------------------------------------------------------- the columns


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One field of a table.

    Attributes:
        text: what people read.
        note: what belongs to it, in brackets or beneath.
        detail: lines that only a page has room for.
        sort: what the field is sorted by; None where there is no value.
    """

    text: str
    note: str = ""
    detail: str = ""
    sort: float | str | None = None

    def __str__(self) -> str:
        return f"{self.text} ({self.note})" if self.note else self.text


ABSENT = Cell(text=MISSING)


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of the table that people read."""

    title: str
    help: str
    cell: Callable[[Summary], Cell]


def _method_cell(summary: Summary) -> Cell:
    return Cell(text=summary.method, sort=summary.method)


def _base_cell(summary: Summary) -> Cell:
    return Cell(text=summary.base, sort=summary.base)


def _score_cell(summary: Summary) -> Cell:
    if summary.failure is not None:
        return Cell(text=shorten(summary.failure))
    if summary.score is None:
        return ABSENT
    words = f"{summary.score} {summary.group}".rstrip()
    return Cell(text=words, note=summary.seeds_done, sort=summary.score.mean)


def _difference_cell(difference: Difference | None, summary: Summary) -> Cell:
    if difference is None or summary.score is None:
        return ABSENT
    unit = summary.score.unit
    low, high = (_signed(points, unit) for points in (difference.low, difference.high))
    return Cell(
        text=_signed(difference.points, unit),
        note=f"p {probability(difference.p)}",
        detail=f"{low} to {high}{_findable(difference, unit)}",
        sort=difference.points,
    )


def _findable(difference: Difference, unit: Unit) -> str:
    if difference.detectable is None:
        return ""
    return f"\nfinds {_of_points(difference.detectable, unit)}"


def _signed(points: float, unit: Unit = Unit.PERCENT) -> str:
    number = _of_points(points, unit)
    return number if number.startswith("−") or not number.strip("0.") else f"+{number}"


def _of_points(points: float, unit: Unit) -> str:
    """A difference in hundredths of a score, in the score's own unit."""
    return unit.words(unit.shown(points / 100))[0]


def _trained_cell(summary: Summary) -> Cell:
    trained, share = summary.mean("trained_params"), summary.mean("trained_pct")
    if trained is None:
        return ABSENT
    note = "" if share is None else percent(share)
    return Cell(text=count(trained), note=note, sort=trained)


_EDGES = {"low": " ↓", "high": " ↑"}


def _rate_cell(summary: Summary) -> Cell:
    rates = {(row.lr, row.lr_edge) for row in summary.done if row.lr is not None}
    if not rates:
        return ABSENT
    words = (f"{lr:g}{_EDGES.get(edge or '', '')}" for lr, edge in sorted(rates, key=str))
    return Cell(text=", ".join(words), sort=min(lr for lr, _ in rates))


def measured(column: str, words: Callable[[float], str]) -> Callable[[Summary], Cell]:
    """The cell of a column of ``results.csv``: its mean over seeds, put into `words`."""

    def cell(summary: Summary) -> Cell:
        value = summary.mean(column)
        return ABSENT if value is None else Cell(text=words(value), sort=value)

    return cell


def timed(column: str, words: Callable[[float], str]) -> Callable[[Summary], Cell]:
    """As `measured`, for times, which do not compare between machines."""

    def cell(summary: Summary) -> Cell:
        value = summary.mean(column)
        if value is None:
            return ABSENT
        return Cell(text=f"{words(value)} {summary.mark}".rstrip(), sort=value)

    return cell


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
        help="Parameters that must be kept beside the base to run it, the task head left out.",
        cell=measured("deployed_params", count),
    ),
    Column(
        title="Delta on disk",
        help="Size of the saved delta, the task head included.",
        cell=measured("delta_bytes", size),
    ),
    Column(
        title="Train step × full",
        help="Median time of one training step over that of full fine-tuning in fp32, measured "
        "in alternation. Below 1 is faster.",
        cell=measured("train_step_vs_full", ratio),
    ),
    Column(
        title="Train memory peak",
        help="The most memory that a training step needs.",
        cell=measured("train_peak_bytes", size),
    ),
    Column(
        title="Latency × base, b1",
        help="Median time of a forward pass over that of the bare base, measured in alternation, "
        "for one text at a time.",
        cell=measured("latency_vs_base_b1", ratio),
    ),
    Column(
        title="Latency × base, b8",
        help="The same for eight texts at a time.",
        cell=measured("latency_vs_base_b8", ratio),
    ),
    Column(
        title="Merged × base, b1",
        help="The same for one text, after the delta was folded into the weights of the base; "
        "absent where it does not fold.",
        cell=measured("merged_latency_vs_base_b1", ratio),
    ),
    Column(
        title="Train time",
        help="The whole of this row's own training.",
        cell=timed("train_seconds", duration),
    ),
    Column(
        title="Stage 1 time",
        help="Training of the deltas that this row composes, whether in this run or before.",
        cell=timed("stage1_seconds", duration),
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
COSTS_OF_BASES = (
    Column(
        title="Base size",
        help="Bytes of the base's weights as they are held, statistics of quantisation included.",
        cell=measured("base_bytes", size),
    ),
    Column(
        title="Train step",
        help="Median time of one training step.",
        cell=timed("train_step_ms", milliseconds),
    ),
    Column(
        title="Latency, b1",
        help="Median time of a forward pass for one text.",
        cell=timed("latency_ms_b1", milliseconds),
    ),
    Column(
        title="Inference memory peak",
        help="The most memory that a forward pass for eight texts needs.",
        cell=measured("infer_peak_bytes", size),
    ),
)
"""What ratios to the same base do not show."""


def columns_for(summaries: Sequence[Summary]) -> tuple[Column, ...]:
    """The columns of a run's table: several bases and a search for rates add theirs."""
    method, score, *rest = COLUMNS_FOR_PEOPLE
    score = replace(score, title=score_title(summaries))
    if any(summary.vs_baseline for summary in summaries):
        rest = [VS_BASELINE, *rest]
    if any(summary.mean("trials") for summary in summaries):
        rest = [*rest, RATE]
    if len({summary.base for summary in summaries}) == 1:
        return (method, score, *rest)
    return (method, BASE, score, VS_FULL, *rest, *COSTS_OF_BASES)


def score_title(summaries: Sequence[Summary]) -> str:
    """What stands over the scores: their unit, and an arrow where lower ones are better."""
    metric = metric_of(row for summary in summaries for row in summary.done)
    return f"Score{metric.unit.value}{metric.better.value}"


def legend(summaries: Sequence[Summary], run: Mapping[str, Any]) -> tuple[str, ...]:
    """The sentences that stand under a table."""
    ends = [(name, role(run, name.lower())) for name in ("Floor", "Ceiling", "Baseline")]
    rows = [row for summary in summaries for row in summary.done]
    tested = sorted({row.n_test for row in rows if row.n_test is not None})
    lines = [f"{name}: {label}." for name, label in ends if label is not None]
    metric = metric_of(rows)
    if tested:
        examples = " or ".join(f"{n:,}" for n in tested)
        lines.append(f"Score: {_scale(metric)} on {examples} test examples.")
    return (*lines, *_how_sure(summaries, metric.unit), *_places(machines_of(rows)))


def _scale(metric: Metric) -> str:
    unit = " in per cent" if metric.unit is Unit.PERCENT else ""
    return f"{metric.title}{unit}{', lower is better,' if metric.better is Better.LOWER else ''}"


def _places(machines: Sequence[str]) -> Iterator[str]:
    if len(machines) > 1:
        named = ", ".join(f"[{number}] {name}" for number, name in enumerate(machines, start=1))
        yield f"Times are of {named}: they do not compare, their ratios do."


def _how_sure(summaries: Sequence[Summary], unit: Unit) -> Iterator[str]:
    """What the differences are about, and how small a one this run could have found."""
    found = [
        difference
        for summary in summaries
        for difference in (summary.vs_baseline, summary.vs_floor, summary.vs_ceiling)
        if difference is not None
    ]
    if any(difference.about == "models" for difference in found):
        yield "One seed: p is about these trained models, and says nothing about other seeds."
    sizes = [d.detectable for d in found if d.detectable is not None]
    if sizes:
        yield (
            f"A difference of {_of_points(min(sizes), unit)} to {_of_points(max(sizes), unit)}"
            f"{' points' if unit is Unit.PERCENT else ''} is what this run finds 4 times in 5."
        )


# -------------------------------------------------------------------------------- the file forms


def results_csv(rows: Sequence[CellResult]) -> str:
    """``results.csv``: one line a cell, every column of the schema, what is absent left empty."""
    return _cells_frame(rows).to_csv(index=False, lineterminator="\n")


def _cells_frame(rows: Sequence[CellResult]) -> pd.DataFrame:
    import pandas as pd

    # As objects: otherwise one absent value turns a column of whole numbers into floats.
    return pd.DataFrame([row.to_dict() for row in rows], columns=list(schema.COLUMNS), dtype=object)


def table_md(summaries: Sequence[Summary], run: Mapping[str, Any]) -> str:
    """``table.md``: the table and its legend."""
    frame = _frame(summaries, _markdown)
    align = ["left", *["right"] * (frame.shape[1] - 1)]
    table = frame.to_markdown(index=False, disable_numparse=True, colalign=align)
    return "\n\n".join([table, *map(_markdown, legend(summaries, run))]) + "\n"


def table_tex(summaries: Sequence[Summary]) -> str:
    r"""``table.tex``: a tabular to ``\input``; it needs the package booktabs."""
    frame = _frame(summaries, _latex)
    body = frame.to_latex(index=False, escape=False, column_format="l" + "r" * (frame.shape[1] - 1))
    head = "% Needs booktabs. To fit the page: \\resizebox{\\linewidth}{!}{\\input{table}}\n"
    return head + body


def table_html(summaries: Sequence[Summary]) -> str:
    """``table.html``: a bare table element."""
    return _frame(summaries, str).to_html(index=False, border=0, na_rep=MISSING) + "\n"


def _frame(summaries: Sequence[Summary], escape: Callable[[str], str]) -> pd.DataFrame:
    import pandas as pd

    columns = columns_for(summaries)
    lines = [[escape(str(column.cell(row))) for column in columns] for row in summaries]
    return pd.DataFrame(lines, columns=[escape(column.title) for column in columns], dtype=object)


_MARKDOWN = str.maketrans({char: f"\\{char}" for char in "|*`\\"})
_LATEX = str.maketrans(
    {char: f"\\{char}" for char in "&%$#_{}"}
    # A bracket at the start of a row would be taken for an option of the line break before it.
    | {"[": "{[}", "]": "{]}", "|": "\\textbar{}", "\\": "\\textbackslash{}"}
    | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$"}
    | {"±": "$\\pm$", "×": "$\\times$", "−": "$-$", "–": "--", "…": "\\ldots{}"}
)


def _markdown(text: str) -> str:
    # Only what opens a tag is escaped: "p < 0.001" stays readable in the file itself.
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", text.translate(_MARKDOWN))


def _latex(text: str) -> str:
    return text.translate(_LATEX)
