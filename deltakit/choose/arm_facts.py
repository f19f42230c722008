"""The field of a choice as arms, with their times as measured on this machine."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltakit.choose.bench import Bench, facts_of, timed
from deltakit.choose.candidates import Candidate, counts_of
from deltakit.choose.constraints import Facts
from deltakit.choose.decide.arms import ArmFacts
from deltakit.choose.decide.finals_size import Costs
from deltakit.choose.decide.ladder import FEWEST_FAMILIES, Ladder
from deltakit.choose.journal import Journal
from deltakit.choose.trained_arm import TrainedArm
from deltakit.core.method import METHODS, Role
from deltakit.models.source import BaseChoice

FLOOR = "head"
"""The family of the floor's arms."""

CELL_STEPS, CELL_SECONDS = 16, 2.0
"""What measuring one finalist takes: so many training steps, and so long in addition."""

ONCE_STEPS, ONCE_SECONDS = 10, 8.0
"""What the finals take once: the reference, the reports."""

TIMED_SHARE = 0.1
"""The part of the budget in which methods are timed. On a busy machine it ends before all are."""

TIMED_AT_LEAST = 1 + FEWEST_FAMILIES
"""Methods that are timed whatever it takes: the floor, and those of the smallest choice."""

WARMUP = 0.06
"""The part of the longest training in which the rate rises."""


@dataclass(frozen=True, kw_only=True)
class Field:
    """The arms of a choice before they are trained.

    Attributes:
        facts: of every arm, the floor's too.
        candidates: what each arm trains, by its name.
        floor: the floor's arm at its own rate.
        floor_facts: its numbers of parameters.
        costs: of the finals.
        setup_seconds: what was spent until here.
    """

    facts: tuple[ArmFacts, ...]
    candidates: Mapping[str, Candidate]
    floor: ArmFacts
    floor_facts: Facts
    costs: Costs
    setup_seconds: float


def measure_field(
    bench: Bench,
    candidates: Sequence[Candidate],
    journal: Journal,
    started: float,
    budget: float,
) -> Field:
    """The arms of the candidates and of the floor.

    One size of each method is timed on each base, as far as a part of the budget goes. The times
    are stored: a run that goes on decides by those of its first start.

    Args:
        bench: base and data.
        candidates: those that no constraint rules out.
        journal: what is stored.
        started: when the budget began.
        budget: its seconds.
    """
    floor = floor_candidate(bench)
    stored = journal.read("times.json")
    if stored is None:
        stored = _times(bench, (floor, *candidates), started + TIMED_SHARE * budget)
        stored["setup"] = bench.clock.now() - started
        journal.write("times.json", stored)
    facts: dict[str, ArmFacts] = {}
    of: dict[str, Candidate] = {}
    for candidate in (*candidates, floor):
        times = stored["methods"][_timed_as(candidate)]
        for lr in candidate.rates:
            arm = arm_facts(candidate, lr, times)
            facts[arm.name], of[arm.name] = arm, candidate
    usual_floor = next(a for a in facts.values() if a.family == FLOOR and a.usual_rate)
    typical = min(each["step"] for each in stored["methods"].values() if each["step"])
    task = bench.plan.task
    return Field(
        facts=tuple(facts.values()),
        candidates=of,
        floor=usual_floor,
        floor_facts=facts_of(floor, bench.base_params),
        costs=Costs(
            validation_rows=len(task.validation),
            test_rows=len(task.test),
            cell_seconds=CELL_SECONDS + CELL_STEPS * typical,
            once_seconds=ONCE_SECONDS + ONCE_STEPS * typical,
        ),
        setup_seconds=stored["setup"],
    )


def _times(bench: Bench, candidates: Sequence[Candidate], end: float) -> dict[str, Any]:
    """Seconds by method and base: of a training step, of a row's evaluation, of loading.

    A method that is not timed by `end` has the times of the slowest that is.
    """
    found: dict[str, dict[str, float]] = {}
    for candidate in candidates:
        key = _timed_as(candidate)
        if key in found:
            continue
        if len(found) < TIMED_AT_LEAST or bench.clock.now() < end:
            found[key] = timed(bench, candidate.method, candidate.base)
        else:
            found[key] = slowest_of(found.values())
    return {"methods": found}


def slowest_of(times: Collection[Mapping[str, float]]) -> dict[str, float]:
    """The largest of each kind of time."""
    return {kind: max(each[kind] for each in times) for kind in ("fixed", "step", "row")}


def _timed_as(candidate: Candidate) -> str:
    return f"{candidate.family} on {candidate.base.name}"


def arm_facts(candidate: Candidate, lr: float, times: Mapping[str, float]) -> ArmFacts:
    """The facts of one arm."""
    return ArmFacts(
        name=f"{candidate.name} at {lr:g}",
        candidate=candidate.name,
        family=candidate.family,
        lr=lr,
        cost=candidate.counts.deployed_params,
        step_seconds=times["step"],
        row_seconds=times["row"],
        fixed_seconds=times["fixed"],
        usual_size=candidate.usual_size,
        usual_rate=lr == candidate.rates[0],
    )


def floor_candidate(bench: Bench) -> Candidate:
    """The registered method that trains the task head alone, on the first base."""
    name = next(n for n in METHODS if METHODS.get(n).cls.role is Role.FLOOR)
    method = METHODS.get(name).build()
    base: BaseChoice = next(iter(bench.bases.values()))
    skeleton = bench.plan.model.skeleton(bench.plan.task.kind.head)
    counts = counts_of(method, skeleton)
    return Candidate(label=name, method=method, family=FLOOR, base=base, counts=counts)


def arms_of(bench: Bench, field: Field, journal: Journal, ladder: Ladder) -> list[TrainedArm]:
    """The arms, ready to be trained."""
    total = ladder.rungs[-1].steps
    return [
        TrainedArm(
            facts=facts,
            candidate=field.candidates[facts.name],
            bench=bench,
            folder=journal.arm_folder(facts.name),
            warmup=max(1, round(WARMUP * total)),
            total=total,
        )
        for facts in field.facts
        if facts.name in ladder.arms
    ]
