"""The field of a choice as arms, with their times as measured on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltakit.choose.bench import Bench, facts_of, timed
from deltakit.choose.candidates import Candidate, counts_of
from deltakit.choose.constraints import Facts
from deltakit.choose.decide.arms import ArmFacts
from deltakit.choose.decide.ladder import Costs, Ladder
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
    bench: Bench, candidates: Sequence[Candidate], journal: Journal, started: float
) -> Field:
    """The arms of the candidates and of the floor.

    One size of each method is timed on each base. The times are stored: a run that goes on
    decides by those of its first start.
    """
    floor = floor_candidate(bench)
    stored = journal.read("times.json")
    if stored is None:
        stored = _times(bench, (floor, *candidates))
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


def _times(bench: Bench, candidates: Sequence[Candidate]) -> dict[str, Any]:
    """Seconds by method and base: of a training step, of a row's evaluation, of loading."""
    found: dict[str, Any] = {}
    for candidate in candidates:
        key = _timed_as(candidate)
        if key not in found:
            found[key] = timed(bench, candidate.method, candidate.base)
    return {"methods": found}


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
