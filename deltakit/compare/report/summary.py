"""From cells to rows: one method on one base, over its seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deltakit.compare.records.result import CellResult, Predictions, Row
from deltakit.compare.records.run import RunRecord
from deltakit.compare.records.verdict import Verdict
from deltakit.compare.stats.contrasts import Seeds, contrasts, letter_display, told_apart
from deltakit.compare.stats.metrics import METRICS, Metric, Unit
from deltakit.compare.stats.significance import Difference, across_seeds, is_constant
from deltakit.errors import InvalidConfig

PredictionsOf = Mapping[tuple[str, str, int], Predictions]
"""The predictions of each finished cell, by method, base and seed."""
VerdictsOf = Mapping[tuple[str, str, int], tuple[Verdict, ...]]
"""What other libraries say about finished cells, by method, base and seed."""


@dataclass(frozen=True, kw_only=True)
class DisplayedScore:
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
class ForgottenSummary:
    """The forgetting of a row, with its 95 % interval: over seeds, or of one seed over passages.

    Attributes:
        kind: a key of `deltakit.compare.records.forgotten.MEASURES`.
        mean: higher is worse.
        low: lower end of the interval.
        high: upper end.
        seeds: how many there were.
    """

    kind: str
    mean: float
    low: float | None
    high: float | None
    seeds: int


@dataclass(frozen=True, kw_only=True)
class RowSummary:
    """One method on one base, over its seeds."""

    method: str
    base: str
    done: tuple[CellResult, ...]
    failed: tuple[CellResult, ...]
    score: DisplayedScore | None
    vs_floor: Difference | None
    vs_ceiling: Difference | None
    vs_full: Difference | None = None
    """Against the same method on the base in full precision."""
    vs_baseline: Difference | None = None
    """Against the row that the user named."""
    group: str = ""
    """Rows that share a letter cannot be told apart; empty with a single seed."""
    apart: frozenset[Row] = frozenset()
    """The rows that it can be told from, of all that have predictions, whatever their seeds."""
    collapsed: int = 0
    """How many of the seeds predict one class for everything."""
    mark: str = ""
    """Which machines its times are of, where the table has several."""
    verdicts: tuple[Verdict, ...] = ()
    """What other libraries say about its cells."""

    def mean(self, column: str) -> float | None:
        """The mean of a numeric column over the finished seeds, or None where it has no value."""
        values = [value for row in self.done if (value := getattr(row, column)) is not None]
        return sum(values) / len(values) if values else None

    @property
    def forgotten(self) -> ForgottenSummary | None:
        """The forgetting of the row; None where it was not measured."""
        return _forgotten([row for row in self.done if row.forgotten is not None])

    @property
    def seeds_done(self) -> str:
        """The numbers of seeds that finished and failed, in words."""
        words = []
        if self.failed:
            words.append(f"{len(self.done)} of {len(self.done) + len(self.failed)} seeds")
        if self.collapsed:
            words.append(f"{self.collapsed} collapsed")
        return ", ".join(words)

    @property
    def failure(self) -> str | None:
        """The reason of the failure, where every seed failed."""
        return None if self.done else f"failed: {reason_of(self.failed[0])}"


def _forgotten(rows: Sequence[CellResult]) -> ForgottenSummary | None:
    values = [row.forgotten for row in rows if row.forgotten is not None]
    kinds = {row.forgotten_kind for row in rows}
    if len(kinds) != 1:
        return None
    mean, half = across_seeds(values)
    low, high = rows[0].forgotten_low, rows[0].forgotten_high
    if half is not None:
        low, high = mean - half, mean + half
    return ForgottenSummary(kind=str(kinds.pop()), mean=mean, low=low, high=high, seeds=len(values))


def reason_of(row: CellResult) -> str:
    """The reason of a cell's failure, on one line."""
    return " ".join((row.reason or "no reason was recorded").split())


def summarise(
    rows: Sequence[CellResult],
    predictions: PredictionsOf,
    run: RunRecord,
    verdicts: VerdictsOf | None = None,
) -> tuple[RowSummary, ...]:
    """One `RowSummary` for each method and base, in the order of first appearance, by method.

    Args:
        rows: the cells of one run.
        predictions: those of the finished cells; where they are missing, so are differences.
        run: its roles name the floor and the ceiling, and its `full_precision` the base that
            other bases are compared with.
        verdicts: what other libraries say about the cells.

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
    full = str(run.full_precision)
    scores = {key: _score(_done(group)) for key, group in groups.items()}
    ranked = sorted(groups, key=lambda key: -_rank(scores[key], metric))
    group_of = letter_display(seeds, ranked, metric)
    apart = told_apart(seeds, metric)
    versus = {name: _versus(seeds, run.role(name), full, metric) for name in _REFERENCES}
    vs_full = contrasts(seeds, {key: (key[0], full) for key in seeds}, metric)
    machines = machines_of(rows)
    return tuple(
        RowSummary(
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
            apart=frozenset(other for row, other in apart if row == (method, base)),
            collapsed=_collapsed(method, run, seeds[method, base]),
            mark=_mark(group, machines),
            verdicts=_verdicts(group, verdicts or {}),
        )
        for (method, base), group in sorted(groups.items(), key=lambda g: methods.index(g[0][0]))
    )


def _check_one_task(rows: Sequence[CellResult]) -> None:
    tasks = sorted({row.task for row in rows})
    if len(tasks) > 1:
        raise InvalidConfig(
            f"rows of {len(tasks)} tasks ({', '.join(tasks)}) do not share a table. Report each "
            "task's run on its own."
        )


def machines_of(rows: Iterable[CellResult]) -> tuple[str, ...]:
    """The machines that the rows were measured on."""
    return tuple(sorted({row.machine for row in rows if row.machine is not None}))


def _verdicts(group: Sequence[CellResult], verdicts: VerdictsOf) -> tuple[Verdict, ...]:
    keys = ((row.method, row.base, row.seed) for row in group)
    return tuple(each for key in keys for each in verdicts.get(key, ()))


def _mark(rows: Sequence[CellResult], machines: Sequence[str]) -> str:
    """A row's machines by their numbers, where there are several at all."""
    if len(machines) < 2:
        return ""
    numbers = [str(1 + machines.index(name)) for name in machines_of(rows)]
    return f"[{', '.join(numbers)}]" if numbers else ""


def _done(rows: Sequence[CellResult]) -> tuple[CellResult, ...]:
    return tuple(row for row in rows if row.status == "done")


def _predictions(rows: Sequence[CellResult], predictions: PredictionsOf) -> Seeds:
    """Those of all finished seeds; none where one is missing: the score is a mean over all."""
    keys = {row.seed: (row.method, row.base, row.seed) for row in _done(rows)}
    if not predictions.keys() >= {*keys.values()}:
        return {}
    return {seed: predictions[key] for seed, key in keys.items()}


def _rank(score: DisplayedScore | None, metric: Metric) -> float:
    return -math.inf if score is None else metric.direction.rank(score.mean)


def _collapsed(method: str, run: RunRecord, seeds: Seeds) -> int:
    """The constant prediction is one class for everything by design."""
    return 0 if method == run.constant else sum(map(is_constant, seeds.values()))


def _score(done: Sequence[CellResult]) -> DisplayedScore | None:
    scored = [row for row in done if row.score is not None]
    if not scored:
        return None
    unit = metric_of(done).unit
    mean, half = across_seeds([unit.shown(row.score) for row in scored if row.score is not None])
    if half is not None:
        return DisplayedScore(
            mean=mean, low=mean - half, high=mean + half, seeds=len(scored), unit=unit
        )
    low, high = scored[0].score_low, scored[0].score_high
    return DisplayedScore(
        mean=mean,
        low=None if low is None else unit.shown(low),
        high=None if high is None else unit.shown(high),
        seeds=1,
        unit=unit,
    )


def metric_of(rows: Iterable[CellResult]) -> Metric:
    """The metric of a run's rows; accuracy, where none of them names one.

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
    """Every row against the one labelled `label` on its own base, or else in full precision.

    A row that is there and failed on a base is no other base's.
    """
    if label is None:
        return {}
    pairs = {(m, b): (label, b) if (label, b) in seeds else (label, full) for m, b in seeds}
    return contrasts(seeds, pairs, metric)
