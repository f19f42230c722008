"""The ladder: how many arms, how many steps and how many seeds a budget of time allows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean

from deltakit.choose.decide.arms import ArmFacts, Rung
from deltakit.errors import InvalidConfig

ETA = 3
"""Each rung trains so many times longer than the one before it."""

RUNGS = 3

FEWEST_STEPS = 27
"""Steps of the last rung that a choice takes at the least: the first rung has three of them."""

EARLY_ROWS, LAST_ROWS = 500, 1000
"""Validation examples of the early rungs, and of the last one and the finals, at most."""

RESERVE = 0.9
"""The part of the budget that is planned."""

FALLBACKS = 4
"""Shorter trainings that are tried before a budget is too small: the whole, 1/2, 1/4, the least."""


@dataclass(frozen=True, kw_only=True)
class Depth:
    """The size of the finals.

    Attributes:
        finalists: candidates that are trained afresh.
        rates: learning rates around the chosen one that are tried; 1 takes it as it is.
        seeds: fresh seeds of each.
    """

    finalists: int
    rates: int
    seeds: int


DEPTHS = (
    Depth(finalists=3, rates=3, seeds=3),
    Depth(finalists=3, rates=2, seeds=2),
    Depth(finalists=2, rates=1, seeds=2),
)
"""From the deepest finals to the ones that every budget must have room for."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The use of a budget.

    Attributes:
        rungs: steps and rows of each.
        arms: names of the arms that begin.
        left_out: names of those that this budget has no room for.
        bracket_seconds: for all rungs.
        finals_seconds: for the finals.
        depth: of the finals, as planned.
    """

    rungs: tuple[Rung, ...]
    arms: tuple[str, ...]
    left_out: tuple[str, ...]
    bracket_seconds: float
    finals_seconds: float
    depth: Depth


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The cost of the finals in addition to training.

    Attributes:
        validation_rows: examples of the whole validation split.
        test_rows: examples of the test split.
        cell_seconds: measuring one trained finalist.
        once_seconds: what the finals take once: loading, the reports.
    """

    validation_rows: int
    test_rows: int
    cell_seconds: float = 0.0
    once_seconds: float = 0.0


def rungs_of(steps: int, validation_rows: int) -> tuple[Rung, ...]:
    """The rungs of a training of `steps` steps: a ninth, a third, the whole."""
    rows = [min(validation_rows, EARLY_ROWS)] * (RUNGS - 1) + [min(validation_rows, LAST_ROWS)]
    return tuple(
        Rung(number=at + 1, steps=math.ceil(steps / ETA ** (RUNGS - 1 - at)), rows=rows[at])
        for at in range(RUNGS)
    )


def survivors_planned(arms: Sequence[ArmFacts], rung: int) -> int:
    """Arms that a rung is planned for: a third of those before it, one a family in two rungs."""
    families = len({arm.family for arm in arms})
    share = math.ceil(len(arms) / ETA ** (rung - 1))
    return min(len(arms), max(share, families if rung <= 2 else 3))


def bracket_seconds(arms: Sequence[ArmFacts], rungs: Sequence[Rung]) -> float:
    """The predicted time of all rungs."""
    before, total = 0, 0.0
    for rung in rungs:
        number = survivors_planned(arms, rung.number)
        total += number * mean(arm.seconds(rung.steps - before, rung.rows) for arm in arms)
        before = rung.steps
    return total


def finals_seconds(
    arms: Sequence[ArmFacts], steps: int, depth: Depth, costs: Costs, floor: ArmFacts | None = None
) -> float:
    """The predicted time of the finals of a typical finalist of `arms`, and of the floor."""
    typical = [_final_seconds(arm, steps, depth, costs) for arm in arms]
    total = costs.once_seconds + depth.finalists * mean(typical)
    return total + (0.0 if floor is None else _final_seconds(floor, steps, depth, costs))


def _final_seconds(arm: ArmFacts, steps: int, depth: Depth, costs: Costs) -> float:
    validation = min(costs.validation_rows, LAST_ROWS)
    trials = depth.rates * arm.seconds(steps, validation) if depth.rates > 1 else 0.0
    seed = arm.seconds(steps, validation + costs.test_rows) + costs.cell_seconds
    return trials + depth.seeds * seed


def plan_ladder(
    arms: Sequence[ArmFacts],
    *,
    seconds: float,
    full_steps: int,
    costs: Costs,
    floor: ArmFacts | None = None,
) -> Ladder:
    """The ladder that fits into a budget.

    The whole field at full length is tried first. What does not fit gives up, in this order: depth
    of the finals, steps, arms of other sizes and rates than a method's own. Every family keeps one.

    Args:
        arms: all that a user asked for, at least one.
        seconds: what is left of the budget.
        full_steps: the longest training that is worth its time.
        costs: of the finals.
        floor: the arm that trains the task head alone, which is a row of the finals.

    Raises:
        InvalidConfig: the budget is too small for the shortest ladder, and which one would do.
    """
    planned = RESERVE * seconds
    full_steps = max(full_steps, FEWEST_STEPS)
    for want, field, depth in _fallbacks(arms, full_steps):
        steps = _most_steps(field, depth, planned, full_steps, costs, floor)
        if steps >= want:
            return _ladder(arms, field, depth, steps, planned, costs, floor)
    _, field, depth = list(_fallbacks(arms, full_steps))[-1]
    least = total_seconds(field, FEWEST_STEPS, depth, costs, floor) / RESERVE
    raise TooSmall(least)


class TooSmall(InvalidConfig):
    """A budget that has no room for one ladder.

    Attributes:
        seconds: what would do, in addition to what is spent already.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the budget is too small: a choice takes {seconds / 60:.1f} minutes more."
        )
        self.seconds = seconds


def _fallbacks(
    arms: Sequence[ArmFacts], full_steps: int
) -> Iterator[tuple[int, tuple[ArmFacts, ...], Depth]]:
    """Steps that are wanted, with a field and a depth, the best first."""
    fields = (
        tuple(arms),
        tuple(arm for arm in arms if arm.usual_size or arm.usual_rate),
        tuple(arm for arm in arms if arm.usual_size),
        one_each(arms),
    )
    for at in range(FALLBACKS):
        want = FEWEST_STEPS if at == FALLBACKS - 1 else max(FEWEST_STEPS, full_steps >> at)
        for field in fields[: at + 1]:
            for depth in DEPTHS[: at + 1]:
                if field:
                    yield want, field, depth


def one_each(arms: Sequence[ArmFacts]) -> tuple[ArmFacts, ...]:
    """The most usual arm of each family."""
    heads: dict[str, ArmFacts] = {}
    for arm in sorted(arms, key=lambda arm: (not arm.usual_size, not arm.usual_rate)):
        heads.setdefault(arm.family, arm)
    return tuple(arm for arm in arms if heads[arm.family] is arm)


def total_seconds(
    arms: Sequence[ArmFacts], steps: int, depth: Depth, costs: Costs, floor: ArmFacts | None
) -> float:
    """The predicted time of all rungs and of the finals."""
    rungs = rungs_of(steps, costs.validation_rows)
    return bracket_seconds(arms, rungs) + finals_seconds(arms, steps, depth, costs, floor)


def _most_steps(
    arms: Sequence[ArmFacts],
    depth: Depth,
    seconds: float,
    most: int,
    costs: Costs,
    floor: ArmFacts | None,
) -> int:
    """The longest training, up to `most` steps, that fits; 0 where none does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        if total_seconds(arms, middle, depth, costs, floor) <= seconds:
            low = middle
        else:
            high = middle
    return low


def _ladder(
    arms: Sequence[ArmFacts],
    field: Sequence[ArmFacts],
    depth: Depth,
    steps: int,
    planned: float,
    costs: Costs,
    floor: ArmFacts | None,
) -> Ladder:
    rungs = rungs_of(steps, costs.validation_rows)
    finals = finals_seconds(field, steps, depth, costs, floor)
    names = {arm.name for arm in field}
    return Ladder(
        rungs=rungs,
        arms=tuple(arm.name for arm in field),
        left_out=tuple(arm.name for arm in arms if arm.name not in names),
        # What steps leave over, as they are whole and have an end, goes to keeping more arms.
        bracket_seconds=planned - finals,
        finals_seconds=finals,
        depth=depth,
    )


def depth_that_fits(
    finalists: Sequence[ArmFacts],
    *,
    seconds: float,
    steps: int,
    costs: Costs,
    floor: ArmFacts | None = None,
    slowdown: float = 1.0,
) -> tuple[tuple[ArmFacts, ...], Depth]:
    """The deepest finals of these finalists that fit into what is left, and who is in them.

    The least ones are returned where none fits.

    Args:
        finalists: the best first.
        seconds: what is left of the budget.
        steps: of one training.
        costs: of the finals.
        floor: the arm that trains the task head alone.
        slowdown: how much longer than predicted the rungs took.
    """
    chosen = finalists[: DEPTHS[-1].finalists]
    for depth in DEPTHS:
        some = finalists[: depth.finalists]
        several = Depth(finalists=len(some), rates=depth.rates, seeds=depth.seeds)
        if slowdown * finals_seconds(some, steps, several, costs, floor) <= seconds:
            return tuple(some), several
    return tuple(chosen), Depth(
        finalists=len(chosen), rates=DEPTHS[-1].rates, seeds=DEPTHS[-1].seeds
    )
