"""The bracket: all rungs, one after the other, within a budget of time.

Every decision follows from the readings in the journal, and from the times in them. So a run that
was killed and goes on decides as one that was not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from deltakit.choose.decide.arms import Arm, ArmFacts, Journal, Reading, Rung
from deltakit.choose.decide.halving import (
    MARGIN,
    Fate,
    Verdict,
    arms_at_chance,
    caution_after,
    judge,
    most_kept,
    rank_correlation,
    scores_of,
    settled,
)
from deltakit.choose.decide.ladder import FEWEST_FAMILIES, Ladder
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import Metric

FEWEST_ARMS = 2
"""Arms that a rung has at the least; with fewer there is nothing to choose."""

QUARTER = 4
"""Slowdowns are rounded up to a quarter, so that small differences in time decide nothing."""


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """A rung that has ended.

    Attributes:
        rung: its steps and rows.
        verdicts: the fate of every arm that was in it, best first.
        correlation: Spearman's rank correlation with the rung before it, where there is one.
        seconds: what it took.
    """

    rung: Rung
    verdicts: tuple[Verdict, ...]
    correlation: float | None
    seconds: float


@dataclass(frozen=True, kw_only=True)
class BracketResult:
    """A bracket that has ended.

    Attributes:
        rungs: those that were run.
        readings: of the last of them, by arm.
        seconds: what all of them took.
        slowdown: how much longer than predicted they took, 1 at the least.
    """

    rungs: tuple[RungResult, ...]
    readings: Mapping[str, Reading]
    seconds: float
    slowdown: float


class Watch(Protocol):
    """Receives what happens, for a display."""

    def rung_begins(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """A rung begins with these arms."""

    def arm_read(self, rung: Rung, arm: ArmFacts, reading: Reading) -> None:
        """An arm has ended the rung."""

    def rung_ends(self, result: RungResult, metric: Metric) -> None:
        """A rung has ended; its scores are the metric's."""


class Unwatched:
    """A watch that shows nothing."""

    def rung_begins(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """Nothing."""

    def arm_read(self, rung: Rung, arm: ArmFacts, reading: Reading) -> None:
        """Nothing."""

    def rung_ends(self, result: RungResult, metric: Metric) -> None:
        """Nothing."""


def run_bracket(
    arms: Sequence[Arm],
    ladder: Ladder,
    metric: Metric,
    journal: Journal,
    *,
    margin: float = MARGIN,
    watch: Watch | None = None,
    chance: Callable[[int], Predictions] | None = None,
) -> BracketResult:
    """Trains the ladder's arms rung by rung; what the journal holds is not done again.

    Where a rung takes longer than planned, the finals give up their depth for it, and then arms
    are left out: all that there is no time for, once two families have an arm. A rung is not begun
    where there is no room for two arms of it.

    Args:
        arms: all of them; those that the ladder leaves out are not touched.
        ladder: the rungs and the time for them.
        metric: the score.
        journal: what is done already, and what is done here.
        margin: points that do not matter.
        watch: told what happens.
        chance: the majority's prediction for so many of the first validation examples.
    """
    watch = watch or Unwatched()
    alive = in_turn([arm for arm in arms if arm.facts.name in ladder.arms])
    clock = BracketClock(
        budget=ladder.bracket_seconds,
        spare=ladder.finals_seconds - ladder.least_finals_seconds,
        finals=ladder.least_finals_seconds,
    )
    results: list[RungResult] = []
    readings: dict[str, Reading] = {}
    scores: dict[str, float] = {}
    before = 0
    for at, rung in enumerate(ladder.rungs):
        if at and clock.room(alive, rung, before, at, len(ladder.rungs)) < FEWEST_ARMS:
            break
        facts = [arm.facts for arm in alive]
        watch.rung_begins(rung, facts)
        started = clock.spent
        readings = _climb(alive, rung, before, clock, journal, watch)
        scores, earlier = scores_of(readings, metric), scores
        correlation = rank_correlation(earlier, scores)
        majority = chance and chance(rung.rows)
        stuck = arms_at_chance(readings, majority, metric)
        if majority is not None and not earlier:
            earlier = dict.fromkeys(scores, metric.value(majority))
        room = most = len(alive)
        if at + 1 < len(ladder.rungs):
            room = clock.room(alive, ladder.rungs[at + 1], rung.steps, at + 1, len(ladder.rungs))
            most = most_kept(len(alive), correlation, len(stuck))
        verdicts = judge(
            facts,
            readings,
            metric,
            capacity=max(min(room, most), 1),
            margin=margin,
            caution=caution_after(rung.number, correlation),
            families=max(room, 1) if rung.number == 1 else 0,
            at_chance=stuck,
            before=earlier if at + 1 < len(ladder.rungs) else None,
        )
        if at + 1 == len(ladder.rungs):
            verdicts = settled(verdicts)
        results.append(
            RungResult(
                rung=rung,
                verdicts=verdicts,
                correlation=correlation,
                seconds=clock.spent - started,
            )
        )
        watch.rung_ends(results[-1], metric)
        place = {each.arm: at for at, each in enumerate(verdicts) if each.fate is Fate.KEPT}
        kept = [arm for arm in alive if arm.facts.name in place]
        alive = by_turn(sorted(kept, key=lambda arm: place[arm.facts.name]))
        before = rung.steps
    return BracketResult(
        rungs=tuple(results), readings=readings, seconds=clock.spent, slowdown=clock.slowdown
    )


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


def _climb(
    alive: Sequence[Arm],
    rung: Rung,
    before: int,
    clock: BracketClock,
    journal: Journal,
    watch: Watch,
) -> dict[str, Reading]:
    """The readings of a rung. It depends on the order of the arms, which is fixed."""
    readings: dict[str, Reading] = {}
    families: set[str] = set()
    for arm in alive:
        facts = arm.facts
        predicted = facts.seconds(rung.steps - before, rung.rows)
        spare = facts.family in families or len(families) >= FEWEST_FAMILIES
        if spare and not clock.has_room(predicted):
            continue
        reading = journal.reading(facts.name, rung.number)
        if reading is None:
            reading = arm.advance(rung)
            journal.keep(facts.name, rung.number, reading)
        clock.spent += reading.seconds
        clock.predicted += predicted
        readings[facts.name] = reading
        families.add(facts.family)
        watch.arm_read(rung, facts, reading)
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
