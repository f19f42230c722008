"""The outcome of a choice, from its rungs and its finals."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

from deltakit.choose.arm_facts import FLOOR
from deltakit.choose.cost import cost_share, minutes_for_all
from deltakit.choose.decide.arms import Reading
from deltakit.choose.decide.bracket import BracketResult
from deltakit.choose.decide.certainty import pooled, probability, score_interval
from deltakit.choose.decide.halving import Fate, arms_at_chance
from deltakit.choose.decide.ladder import untried
from deltakit.choose.finals import RowKey, Trained, measured, steps_of
from deltakit.choose.outcome import FinalRow, Outcome, arms_by_fate
from deltakit.choose.prepare import Prepared, full_steps
from deltakit.choose.selection import best_seed, facts_of_row
from deltakit.compare.plan.plan import Plan
from deltakit.compare.records.result import Predictions
from deltakit.compare.results import Results
from deltakit.compare.stats.metrics import Metric


def outcome_of(
    prepared: Prepared,
    bracket: BracketResult,
    trained: Trained,
    results: Results,
    choice: tuple[str, str],
    broken: Mapping[tuple[str, str], tuple[str, ...]],
    plan: Plan,
) -> Outcome:
    """The outcome, as plain data."""
    tested = _tested(results, trained)
    names = {key: _name(prepared, key) for key in tested}
    tests = {names[key]: tuple(seeds.values()) for key, seeds in tested.items()}
    rows = tuple(
        _row(prepared, key, tests, trained, results, broken.get(key, ())) for key in tested
    )
    both = {names[key]: _both(plan, trained.validation[key], tested[key]) for key in tested}
    chosen = names[choice]
    metric, floor = prepared.metric, _name(prepared, _floor_key(plan))
    saved = best_seed(_by_seed(plan, trained.validation[choice], tested[choice]), metric)
    end = prepared.field.setup_seconds + bracket.seconds + trained.seconds
    return Outcome(
        choice=next(row for row in rows if row.name == chosen),
        saved_seed=saved,
        saved_score=metric.value(tested[choice][saved]),
        rows=rows,
        floor=floor,
        metric=metric,
        task=plan.task.name,
        model=plan.model.name,
        base_params=prepared.bench.base_params,
        n_test=len(plan.task.test),
        vs={
            names[key]: metric.difference(
                tests[names[key]], tests[chosen], paired=seeds.keys() == tested[choice].keys()
            )
            for key, seeds in tested.items()
            if key != choice
        },
        probability=probability(both, chosen, metric, margin=prepared.request.margin),
        margin=prepared.request.margin,
        cost_share=cost_share(prepared, bracket, plan),
        ruled_out=prepared.ruled_out,
        left_out=(*prepared.ladder.left_out, *bracket.left_out),
        untried=untried(prepared.field.facts, prepared.ladder),
        not_finished=_without_floor(prepared, arms_by_fate(bracket.rungs, Fate.NO_BUDGET)),
        at_chance=_without_floor(prepared, arms_by_fate(bracket.rungs, Fate.AT_CHANCE)),
        beaten=arms_by_fate(bracket.rungs, Fate.BEATEN),
        not_trained=tuple(_name(prepared, key) for key in trained.dropped),
        failed=_failed(bracket, trained),
        collapsed={
            _name(prepared, row): number
            for row, number in collapsed(
                trained.validation,
                learnt=learnt_rows(prepared, bracket),
                constant=prepared.bench.majority(len(plan.task.validation)),
                metric=metric,
            )
        },
        rungs=bracket.rungs,
        minutes=prepared.request.minutes,
        minutes_used=end / 60,
        minutes_for_all=minutes_for_all(prepared),
        steps=steps_of(plan),
        full_steps=full_steps(plan),
    )


def _name(prepared: Prepared, key: tuple[str, str]) -> str:
    return key[0] if len(prepared.bench.bases) == 1 else " on ".join(key)


def _row(
    prepared: Prepared,
    key: tuple[str, str],
    tests: Mapping[str, Sequence[Predictions]],
    trained: Trained,
    results: Results,
    broken: tuple[str, ...],
) -> FinalRow:
    name = _name(prepared, key)
    score, low, high = score_interval(tests, name, prepared.metric)
    facts = measured(results, key, facts_of_row(prepared, key))
    return FinalRow(
        name=name,
        method=key[0],
        base=key[1],
        lr=trained.rates.get(key),
        score=score,
        low=low,
        high=high,
        seeds=len(tests[name]),
        trained=facts.trained_params,
        deployed=facts.deployed_params,
        disk_bytes=facts.disk_bytes,
        latency=facts.latency,
        broken=broken,
    )


def _without_floor(prepared: Prepared, arms: Sequence[str]) -> tuple[str, ...]:
    floors = {arm.name for arm in prepared.field.facts if arm.family == FLOOR}
    return tuple(name for name in arms if name not in floors)


def _failed(bracket: BracketResult, trained: Trained) -> dict[str, str]:
    arms = {
        verdict.arm: verdict.reason or ""
        for rung in bracket.rungs
        for verdict in rung.verdicts
        if verdict.fate is Fate.FAILED
    }
    return {**arms, **{" on ".join(key): why for key, why in trained.failed.items()}}


def _floor_key(plan: Plan) -> tuple[str, str]:
    label = plan.roles["floor"]
    return next((cell.label, cell.base) for cell in plan.cells if cell.label == label)


def _tested(results: Results, trained: Trained) -> dict[tuple[str, str], dict[int, Predictions]]:
    """The predictions of each finalist on the test split, by seed in their order."""
    found: dict[tuple[str, str], dict[int, Predictions]] = {}
    for (label, base, seed), made in sorted(results.predictions.items(), key=lambda e: e[0]):
        if (label, base) in trained.validation:
            found.setdefault((label, base), {})[seed] = made
    return found


def _by_seed(
    plan: Plan, validation: Sequence[Predictions], tested: Mapping[int, Predictions]
) -> dict[int, Predictions]:
    """The validation predictions of each seed that has those of test; one of them may lack them."""
    seeds = sorted({cell.seed for cell in plan.cells})
    before = dict(zip(seeds, validation, strict=True))
    return {seed: before[seed] for seed in tested}


def _both(
    plan: Plan, validation: Sequence[Predictions], tested: Mapping[int, Predictions]
) -> list[Predictions]:
    """Both splits' predictions of each seed that has those of test."""
    before = _by_seed(plan, validation, tested)
    return [pooled(before[seed], made) for seed, made in tested.items()]


def collapsed(
    validation: Mapping[RowKey, Sequence[Predictions]],
    *,
    learnt: Collection[RowKey],
    constant: Predictions,
    metric: Metric,
) -> Iterator[tuple[RowKey, int]]:
    """The rows of which trainings collapsed, with the number of these trainings.

    A rate that is too high collapses from some seeds and not from others.

    Args:
        validation: the predictions of each row's seeds on the validation split.
        learnt: rows that were better than a constant guess in the last rung.
        constant: the majority's prediction for the validation split.
        metric: the score.
    """
    for row in (row for row in validation if row in learnt):
        readings = {
            str(at): Reading(steps=0, seconds=0.0, predictions=made)
            for at, made in enumerate(validation[row])
        }
        if number := len(arms_at_chance(readings, constant, metric)):
            yield row, number


def learnt_rows(prepared: Prepared, bracket: BracketResult) -> set[RowKey]:
    """The rows, the floor left out, that were better than a constant guess in the last rung."""
    learnt = {
        verdict.arm
        for verdict in bracket.rungs[-1].verdicts
        if verdict.score is not None and not verdict.at_chance
    }
    field = prepared.field
    candidates = (
        field.candidates[arm.name]
        for arm in field.facts
        if arm.name in learnt and arm.family != FLOOR
    )
    return {(each.label, each.base.name) for each in candidates}
