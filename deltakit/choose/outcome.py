"""The outcome of a choice, as words and as a record; plain data."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltakit.choose.decide.bracket import RungResult
from deltakit.choose.decide.halving import Fate
from deltakit.compare.report.number_format import format_count, format_p_value, format_ratio
from deltakit.compare.stats.metrics import Metric, Unit
from deltakit.compare.stats.significance import LEVEL, Difference


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
        deployed: deployed parameters.
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
    deployed: int
    latency: float | None
    broken: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A choice that was made.

    Attributes:
        choice: the row that was chosen.
        rows: all rows of the finals, the floor too.
        floor: the row of the task head alone.
        metric: what scores are.
        task: the task's name.
        model: the model's name.
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
        failed: arms and finalists whose training failed, with the reason.
        rungs: those that were run.
        minutes: the budget.
        minutes_used: what was spent.
        minutes_for_all: a budget that has room for the whole field at full length.
        steps: of the longest training.
        full_steps: of a full one.
    """

    choice: FinalRow
    rows: tuple[FinalRow, ...]
    floor: str
    metric: Metric
    task: str
    model: str
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
    failed: Mapping[str, str]
    rungs: tuple[RungResult, ...]
    minutes: float
    minutes_used: float
    minutes_for_all: float
    steps: int
    full_steps: int


def shown(metric: Metric, row: FinalRow) -> str:
    """A row's score with its interval, as people read it."""
    unit = metric.unit
    mean, low, high = unit.words(*(unit.shown(each) for each in (row.score, row.low, row.high)))
    return f"{mean}{unit.value} [{low}, {high}]"


def headline(outcome: Outcome) -> str:
    """The answer in one sentence."""
    row, metric = outcome.choice, outcome.metric
    tested = f"{outcome.n_test:,} test examples that no choice has seen"
    what = f"{shown(metric, row)} {metric.title} on {tested}"
    if row.name == outcome.floor:
        return (
            f"Train the head alone (`{row.name}`, at {row.lr:g}): {what}; no method is worth more."
        )
    rate = "" if row.lr is None else f" at {row.lr:g}"
    return f"Take `{row.name}`{rate}: {what}."


def sentences(outcome: Outcome) -> list[str]:
    """The answer: the headline first, then what a reader must know."""
    return [
        headline(outcome),
        *_against_best(outcome),
        *_against_floor(outcome),
        *_broken(outcome),
        _certainty(outcome),
        *_front(outcome),
        *_ruled_out(outcome),
        *_not_trained(outcome),
        *_trust(outcome),
        _cost(outcome),
        *_more(outcome),
    ]


def _best(outcome: Outcome) -> FinalRow:
    rank = outcome.metric.direction.rank
    return max(outcome.rows, key=lambda row: rank(row.score))


def _against_best(outcome: Outcome) -> Iterator[str]:
    best, choice = _best(outcome), outcome.choice
    if best.name == choice.name:
        others = [row.name for row in outcome.rows if row.name not in (best.name, outcome.floor)]
        if others:
            yield f"It is the best of {len(others) + 1} finalists."
        return
    found = outcome.vs[best.name]
    costs = _costs(best, choice)
    told = "cannot be told from it" if found.p > LEVEL else "is better on the test split"
    yield (
        f"The best of all, `{best.name}`, {told} ({_change(outcome, found)}, p "
        f"{format_p_value(found.p)}){costs}."
    )


def _costs(dear: FinalRow, cheap: FinalRow) -> str:
    parts = []
    if cheap.deployed and dear.deployed:
        parts.append(f"{format_ratio(dear.deployed / cheap.deployed)} the parameters")
    if cheap.latency and dear.latency:
        parts.append(f"{format_ratio(dear.latency / cheap.latency)} the latency")
    return f" and costs {' and '.join(parts)}" if parts else ""


def _against_floor(outcome: Outcome) -> Iterator[str]:
    if outcome.choice.name == outcome.floor or outcome.floor not in outcome.vs:
        return
    found = outcome.vs[outcome.floor]
    better = outcome.metric.direction.rank(-found.points) > 0
    if found.p > LEVEL or not better:
        yield (
            f"Nothing beats the floor for sure: the head alone (`{outcome.floor}`) is at "
            f"{_change(outcome, found)}{_points(outcome)}, p {format_p_value(found.p)}."
        )


def _change(outcome: Outcome, found: Difference) -> str:
    """A difference in the unit of the scores."""
    return outcome.metric.unit.change(found.points)


def _points(outcome: Outcome) -> str:
    """The name of that unit, after a number."""
    metric = outcome.metric
    return " points" if metric.unit is Unit.PERCENT else f" {metric.title}"


def _broken(outcome: Outcome) -> Iterator[str]:
    if outcome.choice.broken:
        yield f"As measured it breaks a constraint: it {'; '.join(outcome.choice.broken)}."
    for row in outcome.rows:
        if row.broken and row.name != outcome.choice.name:
            yield f"`{row.name}` was trained and is out: as measured it {'; '.join(row.broken)}."


def _certainty(outcome: Outcome) -> str:
    share = f"{outcome.probability:.0%}".replace("%", " %")
    said = (
        f"It is within {_margin(outcome)} of the best finalist in {share} of resamples over "
        "examples and seeds."
    )
    untrained = outcome.left_out or outcome.not_finished or outcome.at_chance
    return f"{said} It says nothing of what was not trained." if untrained else said


def _margin(outcome: Outcome) -> str:
    """The difference that does not matter, which is given in hundredths."""
    return f"{outcome.metric.unit.shown(outcome.margin / 100):g}{_points(outcome)}"


def front(outcome: Outcome) -> tuple[FinalRow, ...]:
    """The rows that no other is both better and cheaper than, the cheapest first."""
    rank = outcome.metric.direction.rank
    ordered = sorted(outcome.rows, key=lambda row: (row.deployed, -rank(row.score)))
    kept: list[FinalRow] = []
    for row in ordered:
        if not kept or rank(row.score) > rank(kept[-1].score):
            kept.append(row)
    return tuple(kept)


def _front(outcome: Outcome) -> Iterator[str]:
    others = [row for row in front(outcome) if row.name != outcome.choice.name]
    if others:
        named = (
            f"`{row.name}` ({shown(outcome.metric, row)}, {format_count(row.deployed)} parameters)"
            for row in others
        )
        yield f"Also on the front of score and size: {', '.join(named)}."


def _ruled_out(outcome: Outcome) -> Iterator[str]:
    if outcome.ruled_out:
        reasons = (f"`{name}` {why}" for name, why in outcome.ruled_out.items())
        yield f"Ruled out before training: {'; '.join(reasons)}."


def _not_trained(outcome: Outcome) -> Iterator[str]:
    yield from _left_out(outcome)
    if outcome.at_chance:
        last = outcome.rungs[-1].rung.steps
        yield (
            f"At chance still when they left, after at most {last} steps: "
            f"{', '.join(outcome.at_chance)}. This budget could not train them; they are not "
            "called worse."
        )
    if outcome.not_finished:
        yield (
            f"{_arms(len(outcome.not_finished)).capitalize()} began and had no room to go on. "
            "They are not called worse."
        )
    for name, reason in outcome.failed.items():
        yield f"`{name}` failed: {reason}"


def _left_out(outcome: Outcome) -> Iterator[str]:
    """The arms that did not begin: whole families by name, other sizes and rates by number."""
    if not outcome.left_out:
        return
    families = f" Nothing was tried of: {', '.join(outcome.untried)}." if outcome.untried else ""
    yield (
        f"This budget had no room to begin {_arms(len(outcome.left_out))}, which choice.json names."
        f"{families} They are not worse, they are not tried. Methods have room in the order of "
        "--methods."
    )


def _arms(number: int) -> str:
    return "1 arm" if number == 1 else f"{number} arms"


def _trust(outcome: Outcome) -> Iterator[str]:
    found = [rung.correlation for rung in outcome.rungs if rung.correlation is not None]
    if found:
        words = ", ".join(f"{each:.2f}" for each in found).replace("-", "−")
        yield f"Rank correlation between rungs: {words}."


def _cost(outcome: Outcome) -> str:
    return (
        f"It took {outcome.minutes_used:.1f} of {outcome.minutes:g} minutes; its trainings are "
        f"{100 * outcome.cost_share:.0f} % of the whole grid's."
    )


def _more(outcome: Outcome) -> Iterator[str]:
    if outcome.left_out or outcome.steps < outcome.full_steps:
        yield (
            f"About {outcome.minutes_for_all:.0f} minutes would train the whole field for "
            f"{outcome.full_steps} steps, where this budget had {outcome.steps}."
        )
    elif outcome.probability < 0.9:
        yield "More seeds would settle which finalist is the best: see the command below."


# ----------------------------------------------------------------------------------- the record


def record(outcome: Outcome, *, delta: str, constraints: Mapping[str, Any]) -> dict[str, Any]:
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
        "model": outcome.model,
        "margin": outcome.margin,
        "answer": " ".join(sentences(outcome)),
        "floor": outcome.floor,
        "finalists": [dataclasses.asdict(each) for each in outcome.rows],
        "front": [each.name for each in front(outcome)],
        "ruled_out": dict(outcome.ruled_out),
        "not_begun": list(outcome.left_out),
        "not_finished": list(outcome.not_finished),
        "untried": list(outcome.untried),
        "at_chance": list(outcome.at_chance),
        "worse": list(outcome.beaten),
        "failed": dict(outcome.failed),
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
        "arms": [
            {**dataclasses.asdict(verdict), "fate": verdict.fate.value}
            for verdict in result.verdicts
        ],
    }


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
