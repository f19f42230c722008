"""The size of the finals: finalists, rates, seeds and steps, and the time that they take."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean

from deltakit.choose.decide.arms import ArmFacts
from deltakit.choose.decide.rungs import ETA, LAST_ROWS

STRETCH = 2
"""Times the last rung's steps that the finals are planned with, where a full training is longer."""


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

    They are the deepest of `DEPTHS` with two finalists at twice the last rung's number of steps,
    and else the deepest of all at that number. What time is left makes the trainings longer, at
    most three times, and then seeds and rates more. The least finals are returned where none fits.

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

    longer = max(steps, min(most_steps, STRETCH * steps))
    depths = ((each, longer) for each in DEPTHS if each.finalists > 1)
    fitting = (each for each, long in (*depths, *((d, steps) for d in DEPTHS)) if fits(each, long))
    depth = next(fitting, DEPTHS[-1])
    most = max(steps, min(most_steps, ETA * steps))
    longest = steps + bisect_left(
        range(steps + 1, most + 1), True, key=lambda more: not fits(depth, more)
    )
    deeper = [each for each in (*DEEPER, *DEPTHS) if each.finalists >= depth.finalists]
    depth = next((each for each in deeper if fits(each, longest)), depth)
    some = tuple(finalists[: depth.finalists])
    return Finals(arms=some, depth=replace(depth, finalists=len(some)), steps=longest)
