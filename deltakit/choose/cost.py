"""The cost of a choice, over that of the whole grid."""

from __future__ import annotations

from deltakit.choose.arm_facts import FLOOR
from deltakit.choose.decide.bracket import BracketResult
from deltakit.choose.decide.finals_size import DEPTHS
from deltakit.choose.decide.ladder import RESERVE, total_seconds
from deltakit.choose.finals import steps_of
from deltakit.choose.prepare import Prepared, full_steps
from deltakit.compare.plan.plan import Plan


def cost_share(prepared: Prepared, bracket: BracketResult, plan: Plan) -> float:
    """Predicted time of the steps that were trained, over that of the grid's.

    The grid trains every arm in full, and every candidate with three seeds at its best rate.
    """
    steps = steps_of(plan)
    of = {arm.name: arm.step_seconds for arm in prepared.field.facts}
    whole = [arm for arm in prepared.field.facts if arm.family != FLOOR]
    first = {arm.candidate: arm.step_seconds for arm in whole}
    grid = sum(arm.step_seconds for arm in whole) + DEPTHS[0].seeds * sum(first.values())
    steps_taken: dict[str, int] = {}
    for result in bracket.rungs:
        read = [verdict.arm for verdict in result.verdicts if verdict.score is not None]
        steps_taken |= dict.fromkeys(read, result.rung.steps)
    spent = sum(number * of[name] for name, number in steps_taken.items())
    for row in {(cell.label, cell.base) for cell in plan.cells if cell.training}:
        trainings = [c.training for c in plan.cells if (c.label, c.base) == row and c.training]
        trials = len(trainings[0].rates) if len(trainings[0].rates) > 1 else 0
        each = first.get(" on ".join(row), prepared.field.floor.step_seconds)
        spent += (len(trainings) + trials) * steps * each
    return spent / (steps * grid)


def minutes_for_all(prepared: Prepared) -> float:
    """A budget that has room for the whole field at full length, in minutes."""
    seconds = total_seconds(
        prepared.field.facts,
        full_steps(prepared.bench.plan),
        DEPTHS[0],
        prepared.field.costs,
        prepared.field.floor,
    )
    return (seconds / RESERVE + prepared.field.setup_seconds) / 60
