"""The climb of the arms from rung to rung, and the time that it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deltakit.choose.decide.arms import Arm, Journal, Reading, Rung
from deltakit.choose.decide.ladder import FEWEST_FAMILIES, Ladder
from deltakit.choose.decide.watch import Watch

FEWEST_ARMS = 2
"""Arms that a rung has at the least; with fewer there is nothing to choose."""

QUARTER = 4
"""Slowdowns are rounded up to a quarter, so that small differences in time decide nothing."""


@dataclass(kw_only=True)
class BracketClock:
    """The time of a bracket: what was spent, and what was predicted for it.

    It reads no clock. It adds up the times in the readings.

    Attributes:
        budget: seconds that are planned for the rungs.
        spare: seconds that the finals can give up for rungs that take longer.
        finals: seconds of the finals that are left then.
        spent: seconds of the rungs so far.
        predicted: seconds that were predicted for them.
    """

    budget: float
    spare: float = 0.0
    finals: float = 0.0
    spent: float = 0.0
    predicted: float = 0.0

    @property
    def slowdown(self) -> float:
        """The time it takes over the predicted time, 1 at the least, in quarters."""
        if not self.predicted:
            return 1.0
        return max(1.0, math.ceil(QUARTER * self.spent / self.predicted - 1e-9) / QUARTER)

    @property
    def planned(self) -> float:
        """Seconds that are left of the planned ones, at the speed that was predicted."""
        return (self.budget - self.spent) / self.slowdown

    @property
    def left(self) -> float:
        """Seconds for rungs, if the finals are the least: on a slow machine they take longer."""
        return self.budget + self.spare - (self.slowdown - 1) * self.finals - self.spent

    def room(self, arms: Sequence[Arm], rung: Rung, before: int, at: int, rungs: int) -> int:
        """Arms of a rung that the time left has room for, if the later rungs get as much.

        Where the planned time has room for fewer than two, the finals give up some of theirs.
        """
        each = [arm.facts.seconds(rung.steps - before, rung.rows) for arm in arms]
        typical = self.slowdown * sum(each) / len(each) if each else math.inf
        if not typical:
            return len(arms)

        def of(seconds: float) -> int:
            return int(max(0.0, seconds) / (rungs - at) / typical)

        return max(of(self.budget - self.spent), min(FEWEST_ARMS, of(self.left)))

    def has_room(self, seconds: float) -> bool:
        """True if there is room for that time, be it some of the finals'."""
        return self.slowdown * seconds <= self.left


def clock_of(ladder: Ladder) -> BracketClock:
    """The time that a ladder has for its rungs."""
    return BracketClock(
        budget=ladder.bracket_seconds,
        spare=ladder.finals_seconds - ladder.least_finals_seconds,
        finals=ladder.least_finals_seconds,
    )


@dataclass(kw_only=True)
class Climb:
    """The arms on their way up: their trainings, and the time that these take.

    Attributes:
        clock: the time of the bracket.
        journal: what is done already, and what is done here.
        watch: told what happens.
        steps: that each arm has taken.
    """

    clock: BracketClock
    journal: Journal
    watch: Watch
    steps: dict[str, int] = field(default_factory=dict)

    def read(
        self, alive: Sequence[Arm], rung: Rung, begun: Mapping[str, Reading]
    ) -> dict[str, Reading]:
        """The readings of a rung. It depends on the order of the arms, which is fixed.

        Args:
            alive: the arms of the rung.
            rung: its steps and rows.
            begun: readings of this rung that are there already.
        """
        readings = dict(begun)
        families = {arm.facts.family for arm in alive if arm.facts.name in begun}
        for arm in alive:
            facts = arm.facts
            if facts.name in readings:
                continue
            predicted = facts.seconds(rung.steps - self.steps.get(facts.name, 0), rung.rows)
            spare = facts.family in families or len(families) >= FEWEST_FAMILIES
            if spare and not self.clock.has_room(predicted):
                continue
            reading = self.journal.reading(facts.name, rung.number)
            if reading is None:
                reading = arm.advance(rung)
                self.journal.keep(facts.name, rung.number, reading)
            self.clock.spent += reading.seconds
            self.clock.predicted += predicted
            self.steps[facts.name] = rung.steps
            readings[facts.name] = reading
            families.add(facts.family)
            self.watch.arm_read(rung, facts, reading)
        return readings


def in_turn(arms: Sequence[Arm]) -> list[Arm]:
    """The arms in the order of the first rung: the usual one of each family, then the others."""
    return by_turn(
        sorted(arms, key=lambda arm: (not arm.facts.usual_size, not arm.facts.usual_rate))
    )


def by_turn(arms: Sequence[Arm]) -> list[Arm]:
    """The arms as they are trained: the first of each family, then the second of each, ..."""
    seen: dict[str, int] = {}
    turns: list[tuple[int, int, Arm]] = []
    for at, arm in enumerate(arms):
        turn = seen.get(arm.facts.family, 0)
        seen[arm.facts.family] = turn + 1
        turns.append((turn, at, arm))
    return [arm for _, _, arm in sorted(turns, key=lambda each: each[:2])]
