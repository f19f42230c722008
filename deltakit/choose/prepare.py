"""The preparation of a choice: the candidates, what constraints rule out, the arms, the ladder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltakit.choose.arm_facts import Field, measure_field
from deltakit.choose.bench import Bench, facts_of, measured_facts
from deltakit.choose.candidates import Candidate, candidates_of, combining, read_field
from deltakit.choose.clock import Clock
from deltakit.choose.constraints import Facts, check_feasible, violations
from deltakit.choose.decide.ladder import FEWEST_STEPS, Ladder, TooSmall, plan_ladder
from deltakit.choose.decide.rungs import ETA, FIRST_STEPS, LONGEST_FIRST, RUNGS
from deltakit.choose.journal import Journal
from deltakit.choose.request import ChoiceRequest
from deltakit.choose.tellers import Teller
from deltakit.choose.trained_arm import DECAY
from deltakit.choose.unwaiting import unwaiting_context
from deltakit.compare.plan.lr_search import TUNING_SEED
from deltakit.compare.plan.plan import Plan, content_id
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.stats.metrics import METRICS
from deltakit.core.method import method_to_dict
from deltakit.errors import InvalidConfig

MORE = 1.05
"""A budget that would do, over the time that is predicted."""

SHORTEST = 100
"""Steps of a full training, where three passes over the data are fewer."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A choice whose ladder is known.

    Attributes:
        request: what is asked for.
        journal: what is stored of it.
        bench: base and data.
        field: the arms.
        facts: of each candidate, by name.
        ruled_out: why candidates are out, by name.
        ladder: the use of the budget.
    """

    request: ChoiceRequest
    journal: Journal
    bench: Bench
    field: Field
    facts: Mapping[str, Facts]
    ruled_out: Mapping[str, str]
    ladder: Ladder

    @property
    def metric(self) -> Any:
        """The metric of the task."""
        return METRICS.get(self.bench.plan.task.metric)


def prepare(
    request: ChoiceRequest, out: Path | None, teller: Teller, clock: Clock, started: float
) -> Prepared:
    """Finds the candidates, measures the arms and plans the ladder.

    Args:
        request: what is asked for.
        out: the folder; by default one under ``runs``.
        teller: told what happens.
        clock: what the budget is counted in.
        started: when the budget began.

    Raises:
        InvalidConfig: constraints that no candidate keeps, or a budget that is too small.
    """
    methods = read_field(request.methods)
    plan = build_plan(request.compared)
    skeleton = plan.model.skeleton(plan.task.kind.head)
    bases = {cell.base: cell.training.base for cell in plan.cells if cell.training is not None}
    sources = len(request.compared.source_tasks) + 1  # the task's own delta is one too
    methods, combined = combining(methods, sources, full_steps(plan))
    candidates, misfits = candidates_of(methods, list(bases.values()), skeleton)
    misfits |= combined
    identity = _identity(request, plan, candidates)
    journal = Journal(out or Path("runs") / f"choice-{content_id(identity)}")
    journal.open(content_id(identity), identity)
    bench = Bench(
        plan=plan,
        context=unwaiting_context(plan, journal.path / "finals"),
        seed=TUNING_SEED + request.seed,
        clock=clock,
    )
    facts, ruled_out = _ruled_out(bench, journal, request, candidates, misfits)
    teller.field(candidates, ruled_out)
    kept = tuple(each for each in candidates if each.name not in ruled_out)
    field = measure_field(bench, kept, journal, started, 60 * request.minutes)
    ladder = _ladder(field, request, plan)
    teller.planned(ladder, field.facts, journal.path)
    return Prepared(
        request=request,
        journal=journal,
        bench=bench,
        field=field,
        facts=facts,
        ruled_out=ruled_out,
        ladder=ladder,
    )


def _identity(
    request: ChoiceRequest, plan: Plan, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """Everything that decides a choice, but the speed of the machine.

    A stored reading is of a rung by its number, and of averaged weights, so a version with other
    rungs or averages goes on with none.
    """
    return {
        "task": plan.task.fingerprint,
        "model": plan.model.fingerprint,
        "candidates": [[method_to_dict(each.method), each.base.name] for each in candidates],
        "constraints": request.constraints.to_dict(),
        "minutes": request.minutes,
        "seed": request.seed,
        "margin": request.margin,
        "budget": dataclasses.asdict(request.compared.budget),
        "rungs": [RUNGS, ETA, FIRST_STEPS, LONGEST_FIRST, DECAY],
    }


def _ruled_out(
    bench: Bench,
    journal: Journal,
    request: ChoiceRequest,
    candidates: Sequence[Candidate],
    misfits: Mapping[str, str],
) -> tuple[dict[str, Facts], dict[str, str]]:
    """The facts of each candidate, and why some are out.

    What counting rules out is not measured.

    Raises:
        InvalidConfig: nothing is left.
    """
    constraints = request.constraints
    facts = {each.name: facts_of(each, bench.base_params) for each in candidates}
    stored = journal.read("measured.json") or {}
    for each in candidates:
        if violations(facts[each.name], constraints) or not constraints.need_measuring:
            continue
        if each.name not in stored:
            found = measured_facts(bench, each, facts[each.name], constraints)
            stored[each.name] = dataclasses.asdict(found)
            journal.write("measured.json", stored)
        known = stored[each.name]
        facts[each.name] = Facts(**{**known, "abilities": tuple(known["abilities"])})
    check_feasible(facts, constraints, misfits)
    out = {name: "; ".join(violations(each, constraints).values()) for name, each in facts.items()}
    return facts, {**{name: why for name, why in out.items() if why}, **misfits}


def _ladder(field: Field, request: ChoiceRequest, plan: Plan) -> Ladder:
    seconds = 60 * request.minutes - field.setup_seconds
    try:
        return plan_ladder(
            field.facts,
            seconds=seconds,
            full_steps=full_steps(plan),
            costs=field.costs,
            floor=field.floor,
        )
    except TooSmall as error:
        least = (error.seconds + field.setup_seconds) / 60
        raise InvalidConfig(
            f"--minutes {request.minutes:g} is too small to train the first methods for "
            f"{FEWEST_STEPS} steps on this machine: --minutes {_enough(least)} would do. So may a "
            "smaller --batch-size, --max-length or --max-eval-samples."
        ) from None


def _enough(minutes: float) -> str:
    """A little more than that, rounded up: whole minutes from ten on."""
    more = minutes * MORE
    return str(math.ceil(more)) if more > 9 else f"{math.ceil(10 * more) / 10:g}"


def full_steps(plan: Plan) -> int:
    """Steps of a full training: the budget's passes over the data, or a hundred."""
    budget = plan.request.budget
    batches = -(-len(plan.task.train) // budget.batch_size)
    return max(SHORTEST, round(batches * budget.epochs))
