"""The outcome of a choice, as plain data and as a record."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltakit.choose.decide.halving import Fate, Verdict
from deltakit.choose.decide.watch import RungResult
from deltakit.compare.stats.metrics import Metric
from deltakit.compare.stats.significance import Difference


@dataclass(frozen=True, kw_only=True)
class FinalRow:
    """One finalist, or the floor, on the test split.

    Attributes:
        name: what people read: the spec, and the base where there are several.
        method: the spec.
        base: the base's name.
        lr: the learning rate; None where nothing was trained.
        score: mean over seeds, as the metric has it.
        low: lower end of its 95 % interval, over seeds and examples.
        high: upper end.
        seeds: how many.
        trained: trained parameters without the task head's.
        deployed: deployed parameters.
        disk_bytes: of the saved delta.
        latency: over the base's.
        broken: constraints that it breaks as measured, with their figures.
    """

    name: str
    method: str
    base: str
    lr: float | None
    score: float
    low: float
    high: float
    seeds: int
    trained: int
    deployed: int
    disk_bytes: int
    latency: float | None
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A choice that was made.

    Attributes:
        choice: the row that was chosen.
        saved_seed: the seed of its delta that was saved, the best one on the validation examples.
        saved_score: the test score of that delta.
        rows: all rows of the finals, the floor too.
        floor: the row of the task head alone.
        metric: what scores are.
        task: the task's name.
        model: the model's name.
        base_params: parameters of the base.
        n_test: test examples.
        vs: the difference of every other row's test score from the choice's, by name.
        probability: share of resamples in which the choice is within `margin` points of the best.
        margin: points that do not matter.
        cost_share: time of all trainings over that of the whole grid.
        ruled_out: candidates that a constraint ruled out, with the figure.
        left_out: arms that this budget could not begin.
        untried: methods of which no arm began.
        not_finished: arms that it could not train on; they are not worse.
        at_chance: arms that had not begun to learn; they are not worse.
        beaten: arms that were worse.
        not_trained: finalists that there was no time to train; they are not worse.
        failed: arms and finalists whose training failed, with the reason.
        collapsed: finalists with trainings that ended no better than a constant guess though the
            last rung had seen them learn, with the number of these trainings.
        rungs: those that were run.
        minutes: the budget.
        minutes_used: what was spent.
        minutes_for_all: a budget that has room for the whole field at full length.
        steps: of the longest training.
        full_steps: of a full one.
    """

    choice: FinalRow
    saved_seed: int
    saved_score: float
    rows: tuple[FinalRow, ...]
    floor: str
    metric: Metric
    task: str
    model: str
    base_params: int
    n_test: int
    vs: Mapping[str, Difference]
    probability: float
    margin: float
    cost_share: float
    ruled_out: Mapping[str, str]
    left_out: tuple[str, ...]
    untried: tuple[str, ...]
    not_finished: tuple[str, ...]
    at_chance: tuple[str, ...]
    beaten: tuple[str, ...]
    not_trained: tuple[str, ...]
    failed: Mapping[str, str]
    collapsed: Mapping[str, int]
    rungs: tuple[RungResult, ...]
    minutes: float
    minutes_used: float
    minutes_for_all: float
    steps: int
    full_steps: int


def shown(metric: Metric, row: FinalRow) -> str:
    """A row's score with its 95 % interval, in a table."""
    mean, low, high = _numbers(metric, row)
    return f"{mean}{metric.unit.value} [{low}, {high}]"


def spelled_out(metric: Metric, row: FinalRow) -> str:
    """A row's score with its 95 % interval, in a sentence."""
    mean, low, high = _numbers(metric, row)
    return f"{mean}{metric.unit.value} (95 % interval {low} to {high})"


def _numbers(metric: Metric, row: FinalRow) -> tuple[str, ...]:
    unit = metric.unit
    return unit.words(*(unit.shown(each) for each in (row.score, row.low, row.high)))


def front(outcome: Outcome) -> tuple[FinalRow, ...]:
    """The rows that no other is both better and cheaper than, the cheapest first."""
    rank = outcome.metric.direction.rank
    ordered = sorted(outcome.rows, key=lambda row: (row.deployed, -rank(row.score)))
    kept: list[FinalRow] = []
    for row in ordered:
        if not kept or rank(row.score) > rank(kept[-1].score):
            kept.append(row)
    return tuple(kept)


# ----------------------------------------------------------------------------------- the record


def record(
    outcome: Outcome, *, answer: Sequence[str], delta: str, constraints: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of ``choice.json``. Scores are fractions where people read per cent."""
    row = outcome.choice
    return {
        "method": row.method,
        "lr": row.lr,
        "base": row.base,
        "score": row.score,
        "score_low": row.low,
        "score_high": row.high,
        "metric": outcome.metric.name,
        "task": outcome.task,
        "constraints": dict(constraints),
        "probability": outcome.probability,
        "cost_share": outcome.cost_share,
        "delta": delta,
        "saved_seed": outcome.saved_seed,
        "saved_score": outcome.saved_score,
        "model": outcome.model,
        "margin": outcome.margin,
        "answer": " ".join(answer),
        "floor": outcome.floor,
        "finalists": [dataclasses.asdict(each) for each in outcome.rows],
        "front": [each.name for each in front(outcome)],
        "ruled_out": dict(outcome.ruled_out),
        "not_begun": list(outcome.left_out),
        "not_finished": list(outcome.not_finished),
        "untried": list(outcome.untried),
        "at_chance": list(outcome.at_chance),
        "worse": list(outcome.beaten),
        "not_trained": list(outcome.not_trained),
        "failed": dict(outcome.failed),
        "collapsed": dict(outcome.collapsed),
        "rungs": [rung_record(rung) for rung in outcome.rungs],
        "minutes": outcome.minutes,
        "minutes_used": outcome.minutes_used,
        "steps": outcome.steps,
    }


def rung_record(result: RungResult) -> dict[str, Any]:
    """A rung as JSON holds it."""
    return {
        **dataclasses.asdict(result.rung),
        "correlation": result.correlation,
        "seconds": result.seconds,
        "too_short": result.too_short,
        "arms": [
            {**dataclasses.asdict(verdict), "fate": verdict.fate.value}
            for verdict in result.verdicts
        ],
    }


def last_rung(outcome: Outcome) -> tuple[Verdict, ...]:
    """The verdicts on the methods that ended the last rung with a score, the best first."""
    floor = f"{outcome.floor.partition(' on ')[0]} on "
    scored = [
        each
        for each in outcome.rungs[-1].verdicts
        if each.score is not None and not each.arm.startswith(floor)
    ]
    return tuple(sorted(scored, key=lambda each: each.behind or 0.0))


def finalists_of(outcome: Outcome) -> tuple[FinalRow, ...]:
    """The rows of the finals without the floor."""
    return tuple(row for row in outcome.rows if row.name != outcome.floor)


def arms_by_fate(rungs: Sequence[RungResult], fate: Fate) -> tuple[str, ...]:
    """The arms that left with a fate, rung by rung."""
    return tuple(verdict.arm for rung in rungs for verdict in rung.verdicts if verdict.fate is fate)


def python_lines(model: str, base: str, task: str, labels: int | None, delta: str) -> str:
    """Five lines of Python that load the trained delta."""
    number = "" if labels is None else f", labels={labels}"
    return (
        "import deltakit as dk\n"
        f'model = dk.load_base("{model}", "{base}", task="{task}"{number})\n'
        f'dk.load(model, "{delta}")\n'
        "model.eval()\n"
        "print(dk.summary(model))"
    )


def compare_command(parts: Mapping[str, object]) -> str:
    """The command that compares the finalists in full; several values repeat their option."""
    words = ["deltakit", "compare"]
    for option, value in parts.items():
        for each in value if isinstance(value, tuple) else (value,):
            words += [f"--{option.replace('_', '-')}", str(each)]
    return " ".join(map(shlex.quote, words))
