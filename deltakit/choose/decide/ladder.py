"""The ladder: how many arms, how many steps and how many seeds a budget of time allows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from deltakit.choose.decide.arms import ArmFacts, Rung
from deltakit.choose.decide.finals_size import DEPTHS, STRETCH, Costs, Depth, finals_seconds
from deltakit.choose.decide.rungs import bracket_seconds, rungs_of
from deltakit.errors import InvalidConfig

FEWEST_STEPS = 72
"""Steps of the last rung that a choice takes at the least."""

USEFUL_STEPS = 100
"""Steps of the last rung for which arms of other sizes and rates are given up."""

RESERVE = 0.9
"""The part of the budget that is planned."""

FEWEST_FAMILIES = 2
"""Families that a choice is between at the least, where the field has as many."""


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
        floor: the family that trains the task head alone, where there is one.
    """

    rungs: tuple[Rung, ...]
    arms: tuple[str, ...]
    left_out: tuple[str, ...]
    bracket_seconds: float
    finals_seconds: float
    least_finals_seconds: float
    depth: Depth
    floor: str | None = None


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
    depth of the finals, steps, arms of other sizes, finals that are longer than the last rung, the
    second finalist, arms of other rates, and then families, the last one first: a few arms that
    learn are worth more than many at chance. Room that is left then is filled with arms in the
    order of `by_worth`.

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
    fewest = min(len(one_each(arms)), FEWEST_FAMILIES + (floor is not None))
    for want in _fallbacks(arms, floor, fewest, full_steps):
        order = by_worth(arms, floor, lower_first=want.stretch > 1)
        for number in range(len(order), want.arms - 1, -1):
            steps = _most_steps(order[:number], want, planned, full_steps, costs, floor)
            if steps >= want.steps:
                return _ladder(arms, order[:number], want, steps, planned, full_steps, costs, floor)
    order = by_worth(arms, floor)
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


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    """A ladder that is looked for.

    Attributes:
        steps: of the last rung at the least.
        arms: that begin at the least.
        depth: of the finals.
        stretch: times the last rung's steps that the finals have.
    """

    steps: int
    arms: int
    depth: Depth
    stretch: int = 1

    def finals_steps(self, steps: int, full_steps: int) -> int:
        """Steps of the finals, where the last rung has `steps`."""
        return max(steps, min(full_steps, self.stretch * steps))


def _fallbacks(
    arms: Sequence[ArmFacts], floor: ArmFacts | None, fewest: int, full_steps: int
) -> Iterator[_Wanted]:
    """The ladders to look for; the best first.

    Args:
        arms: all of them.
        floor: the arm that trains the task head alone.
        fewest: arms of the smallest field.
        full_steps: the longest training that is worth its time.
    """
    order = by_worth(arms, floor)
    shorter = (max(full_steps // part, USEFUL_STEPS) for part in (2, 4))
    wanted = (full_steps, *shorter, USEFUL_STEPS, FEWEST_STEPS)
    heads = set(one_each(order))
    fields = (  # how many arms, the most depths that are given up for them, finals as long as rungs
        (len(order), 3, False),
        (sum(arm.usual_size or arm.usual_rate or arm in heads for arm in order), 3, False),
        (sum(arm.usual_size or arm in heads for arm in order), 4, True),
        (len(heads), 4, True),
    )
    for at, steps in enumerate(wanted):
        want = min(full_steps, steps)
        longer = min(full_steps, STRETCH * want) > want
        for least, depths, short in fields[: at + 1]:
            for stretch in ((STRETCH,) if longer else ()) + ((1,) if short or not longer else ()):
                for depth in DEPTHS[: min(at + 1, depths)]:
                    yield _Wanted(steps=want, arms=least, depth=depth, stretch=stretch)
    yield _Wanted(steps=FEWEST_STEPS, arms=fewest, depth=DEPTHS[-1])


def by_worth(
    arms: Sequence[ArmFacts], floor: ArmFacts | None, *, lower_first: bool = False
) -> tuple[ArmFacts, ...]:
    """The arms in the order in which they have room.

    The floor comes first, then the most usual arm of each family, and then these methods at other
    rates, higher ones first, because a training that is short learns more at them. Other sizes at
    their own rate follow, and then the rest. The floor's other rates are the last of each part.

    Args:
        arms: all of them.
        floor: the arm that trains the task head alone.
        lower_first: whether lower rates come first, because a longer training is steadier at them.
    """
    heads = {arm.family: arm for arm in one_each(arms)}

    def place(arm: ArmFacts) -> tuple[int, bool, bool]:
        head = heads[arm.family]
        of_floor = floor is not None and arm.family == floor.family
        if arm is head:
            return 0, not of_floor, False
        part = 1 if arm.usual_size else 2 if arm.usual_rate else 3
        return part, of_floor, (arm.lr < head.lr) != lower_first

    return tuple(sorted(arms, key=place))


def one_each(arms: Sequence[ArmFacts]) -> tuple[ArmFacts, ...]:
    """The most usual arm of each family."""
    heads: dict[str, ArmFacts] = {}
    for arm in sorted(arms, key=lambda arm: (not arm.usual_size, not arm.usual_rate)):
        heads.setdefault(arm.family, arm)
    return tuple(arm for arm in arms if heads[arm.family] is arm)


def total_seconds(
    arms: Sequence[ArmFacts],
    steps: int,
    depth: Depth,
    costs: Costs,
    floor: ArmFacts | None,
    *,
    finals_steps: int | None = None,
) -> float:
    """The predicted time of all rungs and of the finals, which have the same steps by default."""
    rungs = rungs_of(steps, costs.validation_rows)
    longest = steps if finals_steps is None else finals_steps
    return bracket_seconds(arms, rungs) + finals_seconds(arms, longest, depth, costs, floor)


def _most_steps(
    arms: Sequence[ArmFacts],
    want: _Wanted,
    seconds: float,
    most: int,
    costs: Costs,
    floor: ArmFacts | None,
) -> int:
    """The longest training, up to `most` steps, that fits; 0 where none does."""
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        longest = want.finals_steps(middle, most)
        taken = total_seconds(arms, middle, want.depth, costs, floor, finals_steps=longest)
        if taken <= seconds:
            low = middle
        else:
            high = middle
    return low


def _ladder(
    arms: Sequence[ArmFacts],
    field: Sequence[ArmFacts],
    want: _Wanted,
    steps: int,
    planned: float,
    full_steps: int,
    costs: Costs,
    floor: ArmFacts | None,
) -> Ladder:
    rungs = rungs_of(steps, costs.validation_rows)
    longest = want.finals_steps(steps, full_steps)
    finals = finals_seconds(field, longest, want.depth, costs, floor)
    names = {arm.name for arm in field}
    return Ladder(
        rungs=rungs,
        arms=tuple(arm.name for arm in field),
        left_out=tuple(arm.name for arm in arms if arm.name not in names),
        # What steps leave over, as they are whole and have an end, goes to keeping more arms.
        bracket_seconds=planned - finals,
        finals_seconds=finals,
        least_finals_seconds=finals_seconds(field, steps, DEPTHS[-1], costs, floor),
        depth=want.depth,
        floor=None if floor is None else floor.family,
    )
