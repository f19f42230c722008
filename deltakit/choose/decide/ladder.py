"""The ladder: how many arms, how many steps and how many seeds a budget of time allows."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from deltakit.choose.decide.arms import ArmFacts, Rung
from deltakit.errors import InvalidConfig

ETA = 3
"""Each rung trains so many times longer than the one before it, at most."""

RUNGS = 3
"""Rungs of a ladder."""

FIRST_STEPS = 24
"""Steps of the first rung at the least. With fewer, most methods are at chance: `lora` on MiniLM is
at 56 % on `rotten_tomatoes` after 16 steps, and at 67 % after 24."""

FEWEST_STEPS = 72
"""Steps of the last rung that a choice takes at the least."""

USEFUL_STEPS = 100
"""Steps of the last rung for which arms of other sizes and rates are given up."""

EARLY_ROWS, LAST_ROWS = 500, 1000
"""Validation examples of the early rungs, and of the last one and the finals, at most."""

RESERVE = 0.9
"""The part of the budget that is planned."""

FEWEST_FAMILIES = 2
"""Families that a choice is between at the least, where the field has as many."""


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
    Depth(finalists=1, rates=1, seeds=2),
)
"""From the deepest finals to the ones that every budget must have room for."""

DEEPER = (Depth(finalists=3, rates=3, seeds=5), Depth(finalists=3, rates=3, seeds=4))
"""Finals for time that the rungs have left over."""


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """The use of a budget.

    Attributes:
        rungs: steps and rows of each.
        arms: names of the arms that begin.
        left_out: names of those that this budget has no room for.
        bracket_seconds: for all rungs.
        finals_seconds: for the finals.
        least_finals_seconds: for the smallest finals of trainings that are as long.
        depth: of the finals, as planned.
    """

    rungs: tuple[Rung, ...]
    arms: tuple[str, ...]
    left_out: tuple[str, ...]
    bracket_seconds: float
    finals_seconds: float
    least_finals_seconds: float
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
    """The rungs of a training of `steps` steps: a ninth, a third, the whole.

    The first rung has `FIRST_STEPS` at the least, and the second one as many times more as the
    third has over it: 24, 49 and 100.
    """
    first = min(steps, max(FIRST_STEPS, math.ceil(steps / ETA ** (RUNGS - 1))))
    middle = math.ceil(math.sqrt(first * steps))
    parts = dict.fromkeys((first, middle, steps))
    rows = [EARLY_ROWS] * (len(parts) - 1) + [LAST_ROWS]
    return tuple(
        Rung(number=at + 1, steps=part, rows=min(validation_rows, rows[at]))
        for at, part in enumerate(parts)
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

    The whole field at full length is tried first. What does not fit is given up in this order:
    depth of the finals, steps, arms of other sizes, the second finalist, arms of other rates, and
    then families, the last one first: a few arms that learn are worth more than many at chance.
    Room that is left then is filled with arms in the order of `by_worth`.

    Args:
        arms: all that a user asked for, at least one; families that come first have room first.
        seconds: what is left of the budget.
        full_steps: the longest training that is worth its time.
        costs: of the finals.
        floor: the arm that trains the task head alone, which is a row of the finals.

    Raises:
        InvalidConfig: the budget is too small for the shortest ladder, and which one would do.
    """
    planned = RESERVE * seconds
    full_steps = max(full_steps, FEWEST_STEPS)
    order = by_worth(arms, floor)
    fewest = min(len(one_each(arms)), FEWEST_FAMILIES + (floor is not None))
    for want, least, depth in _fallbacks(order, fewest, full_steps):
        for number in range(len(order), least - 1, -1):
            steps = _most_steps(order[:number], depth, planned, full_steps, costs, floor)
            if steps >= want:
                return _ladder(arms, order[:number], depth, steps, planned, costs, floor)
    smallest = total_seconds(order[:fewest], FEWEST_STEPS, DEPTHS[-1], costs, floor)
    raise TooSmall(smallest / RESERVE)


def untried(arms: Sequence[ArmFacts], ladder: Ladder) -> tuple[str, ...]:
    """The families of which no arm begins."""
    begin = {arm.family for arm in arms if arm.name in ladder.arms}
    return tuple(dict.fromkeys(arm.family for arm in arms if arm.family not in begin))


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
    order: Sequence[ArmFacts], fewest: int, full_steps: int
) -> Iterator[tuple[int, int, Depth]]:
    """Steps and arms at the least, and a depth; the best first.

    Args:
        order: the arms, as `by_worth` has them.
        fewest: arms of the smallest field.
        full_steps: the longest training that is worth its time.
    """
    shorter = (max(full_steps // part, USEFUL_STEPS) for part in (2, 4))
    wanted = (full_steps, *shorter, USEFUL_STEPS, FEWEST_STEPS)
    heads = set(one_each(order))
    fields = (  # how many arms, and the most depths that are given up for them
        (len(order), 3),
        (sum(arm.usual_size or arm.usual_rate or arm in heads for arm in order), 3),
        (sum(arm.usual_size or arm in heads for arm in order), 4),
        (len(heads), 4),
    )
    for at, steps in enumerate(wanted):
        want = min(full_steps, steps)
        for least, depths in fields[: at + 1]:
            for depth in DEPTHS[: min(at + 1, depths)]:
                yield want, least, depth
    yield FEWEST_STEPS, fewest, DEPTHS[-1]


def by_worth(arms: Sequence[ArmFacts], floor: ArmFacts | None) -> tuple[ArmFacts, ...]:
    """The arms in the order in which they have room.

    The floor comes first, then the most usual arm of each family, and then these methods at other
    rates, higher ones first, because a training that is short learns more at them. Other sizes at
    their own rate follow, and then the rest. The floor's other rates are the last of each part.
    """
    heads = {arm.family: arm for arm in one_each(arms)}

    def place(arm: ArmFacts) -> tuple[int, bool, bool]:
        head = heads[arm.family]
        of_floor = floor is not None and arm.family == floor.family
        if arm is head:
            return 0, not of_floor, False
        part = 1 if arm.usual_size else 2 if arm.usual_rate else 3
        return part, of_floor, arm.lr < head.lr

    return tuple(sorted(arms, key=place))


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
        least_finals_seconds=finals_seconds(field, steps, DEPTHS[-1], costs, floor),
        depth=depth,
    )


@dataclass(frozen=True, kw_only=True)
class Finals:
    """The finals that fit into what is left of a budget.

    Attributes:
        arms: the finalists, the best first.
        depth: of the finals.
        steps: of one training.
    """

    arms: tuple[ArmFacts, ...]
    depth: Depth
    steps: int


def finals_that_fit(
    finalists: Sequence[ArmFacts],
    *,
    seconds: float,
    steps: int,
    most_steps: int,
    costs: Costs,
    floor: ArmFacts | None = None,
    slowdown: float = 1.0,
) -> Finals:
    """The finals of these finalists that fit into what is left.

    They are the deepest of `DEPTHS` at the last rung's number of steps. What time is left makes the
    trainings longer, at most three times, and then seeds and rates more. The least finals are
    returned where none fits.

    Args:
        finalists: the best first.
        seconds: what is left of the budget.
        steps: of the last rung.
        most_steps: of a training that is worth its time.
        costs: of the finals.
        floor: the arm that trains the task head alone.
        slowdown: how much longer than predicted the rungs took.
    """

    def fits(depth: Depth, steps: int) -> bool:
        some = finalists[: depth.finalists]
        size = replace(depth, finalists=len(some))
        return slowdown * finals_seconds(some, steps, size, costs, floor) <= seconds

    depth = next((each for each in DEPTHS if fits(each, steps)), DEPTHS[-1])
    most = max(steps, min(most_steps, ETA * steps))
    longest = steps + bisect_left(
        range(steps + 1, most + 1), True, key=lambda more: not fits(depth, more)
    )
    deeper = [each for each in (*DEEPER, *DEPTHS) if each.finalists >= depth.finalists]
    depth = next((each for each in deeper if fits(each, longest)), depth)
    some = tuple(finalists[: depth.finalists])
    return Finals(arms=some, depth=replace(depth, finalists=len(some)), steps=longest)
