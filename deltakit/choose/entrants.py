"""Entrants of the finals: the best of the rungs, as many as the time left has room for."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean

from deltakit.choose.arm_facts import FLOOR
from deltakit.choose.decide.arms import ArmFacts
from deltakit.choose.decide.bracket import BracketResult
from deltakit.choose.decide.finals_size import finals_that_fit
from deltakit.choose.decide.finals_time import FinalsTime
from deltakit.choose.decide.halving import best_of_the_worse, finalists
from deltakit.choose.finals import Finalist, finals_plan
from deltakit.choose.prepare import Prepared, full_steps
from deltakit.choose.tellers import Teller
from deltakit.compare.plan.plan import Plan
from deltakit.errors import InvalidConfig

RESERVE_FINALS = 0.95
"""The part of the whole budget that the finals may end at."""


def entered(prepared: Prepared, bracket: BracketResult, teller: Teller) -> Plan:
    """The finals of a bracket; who is in them is stored, with the time that decided it."""
    methods = [arm for arm in prepared.field.facts if arm.family != FLOOR]
    last = bracket.rungs[-1].verdicts
    judged = [verdict for verdict in last if verdict.arm in _names(methods)]
    ranked = finalists(methods, judged, 3) or best_of_the_worse(methods, judged)
    if not ranked:
        reasons = "; ".join(f"{v.arm}: {v.reason or v.fate.value}" for v in judged)
        raise InvalidConfig(f"every arm failed ({reasons}). Name other --methods.")
    fitting = finals_that_fit(
        ranked,
        seconds=RESERVE_FINALS * 60 * prepared.request.minutes
        - prepared.field.setup_seconds
        - bracket.seconds,
        steps=bracket.rungs[-1].rung.steps,
        most_steps=full_steps(prepared.bench.plan),
        costs=prepared.field.costs,
        floor=prepared.field.floor,
        slowdown=bracket.slowdown,
    )
    teller.finals([arm.name for arm in fitting.arms], fitting.depth.seeds, fitting.steps)
    return finals_plan(
        prepared.bench,
        [
            Finalist(candidate=prepared.field.candidates[arm.name], lr=arm.lr)
            for arm in fitting.arms
        ],
        _floor(prepared, bracket),
        fitting.depth,
        fitting.steps,
        first_seed=10 * prepared.request.seed,
    )


def finals_time(prepared: Prepared, bracket: BracketResult) -> FinalsTime:
    """The time that is left for the finals, on a machine as slow as the rungs found it."""
    field, slow = prepared.field, bracket.slowdown
    row = mean(arm.row_seconds for arm in field.facts)
    return FinalsTime(
        budget=60 * prepared.request.minutes - field.setup_seconds - bracket.seconds,
        once=slow * field.costs.once_seconds,
        measured=slow * (field.costs.cell_seconds + field.costs.test_rows * row),
    )


def _floor(prepared: Prepared, bracket: BracketResult) -> Finalist:
    """The floor at the rate that did best in the rung where most of its rates were."""
    floors = {arm.name: arm for arm in prepared.field.facts if arm.family == FLOOR}
    scored = [
        verdict
        for rung in bracket.rungs
        for verdict in rung.verdicts
        if verdict.arm in floors and verdict.behind is not None
    ]
    last = {verdict.arm: verdict for verdict in scored}
    arm = (
        min(last.values(), key=lambda v: v.behind or 0.0).arm if last else prepared.field.floor.name
    )
    return Finalist(candidate=prepared.field.candidates[arm], lr=floors[arm].lr)


def _names(arms: Sequence[ArmFacts]) -> set[str]:
    return {arm.name for arm in arms}
