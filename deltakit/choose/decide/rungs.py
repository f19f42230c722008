"""The rungs: their steps and examples, and the time that they take."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

from deltakit.choose.decide.arms import ArmFacts, Rung

ETA = 3
"""Each rung trains so many times longer than the one before it, at most."""

RUNGS = 3
"""Rungs of a ladder."""

FIRST_STEPS = 24
"""Steps of the first rung at the least. With fewer, most methods are at chance: `lora` on MiniLM is
at 56 % on `rotten_tomatoes` after 16 steps, and at 67 % after 24."""

LONGEST_FIRST = 2 / 3
"""The part of a training that a longer first rung may have."""

EARLY_ROWS, LAST_ROWS = 500, 1000
"""Validation examples of the early rungs, and of the last one and the finals, at most."""


def rungs_of(steps: int, validation_rows: int) -> tuple[Rung, ...]:
    """The rungs of a training of `steps` steps: a ninth, a third, the whole.

    The first rung has `FIRST_STEPS` at the least, and the second one as many times more as the
    third has over it: 24, 49 and 100.
    """
    first = min(steps, max(FIRST_STEPS, math.ceil(steps / ETA ** (RUNGS - 1))))
    early, last = min(validation_rows, EARLY_ROWS), min(validation_rows, LAST_ROWS)
    return _rungs(first, Rung(number=RUNGS, steps=steps, rows=last), early, number=1)


def longer_rungs(first: Rung, last: Rung) -> tuple[Rung, ...]:
    """The rungs that follow a first one that was too short: the next has twice its steps.

    None where that is more than two thirds of the last rung: after 24 steps of 100 they have 48,
    70 and 100.
    """
    if 2 * first.steps > LONGEST_FIRST * last.steps:
        return ()
    return _rungs(2 * first.steps, last, first.rows, number=first.number + 1)


def _rungs(first: int, last: Rung, rows: int, number: int) -> tuple[Rung, ...]:
    """Rungs from one of `first` steps to the last, with one between them."""
    middle = math.ceil(math.sqrt(first * last.steps))
    parts = tuple(dict.fromkeys((first, middle, last.steps)))
    early = (Rung(number=number + at, steps=part, rows=rows) for at, part in enumerate(parts[:-1]))
    return (*early, replace(last, number=number + len(parts) - 1))


def survivors_planned(arms: Sequence[ArmFacts], rung: int) -> int:
    """Arms that a rung is planned for: a third of those before it, one a family in two rungs."""
    families = len({arm.family for arm in arms})
    share = math.ceil(len(arms) / ETA ** (rung - 1))
    return min(len(arms), max(share, families if rung <= 2 else 3))


def bracket_seconds(arms: Sequence[ArmFacts], rungs: Sequence[Rung]) -> float:
    """The predicted time of all rungs."""
    before, total = 0, 0.0
    for at, rung in enumerate(rungs):
        number = survivors_planned(arms, at + 1)
        total += number * mean(arm.seconds(rung.steps - before, rung.rows) for arm in arms)
        before = rung.steps
    return total


def joining(
    begun: Sequence[ArmFacts],
    waiting: Sequence[ArmFacts],
    rungs: Sequence[Rung],
    *,
    before: int,
    seconds: float,
) -> tuple[ArmFacts, ...]:
    """The first arms of `waiting` that there is time for from the next rung on.

    Args:
        begun: arms that have begun, and go on.
        waiting: the others, the ones that have room first.
        rungs: those to come.
        before: steps that each of `begun` has taken.
        seconds: what is left for these rungs.
    """
    taken = sum(before * arm.step_seconds for arm in begun)
    for number in range(len(waiting), 0, -1):
        if bracket_seconds((*begun, *waiting[:number]), rungs) - taken <= seconds:
            return tuple(waiting[:number])
    return ()
