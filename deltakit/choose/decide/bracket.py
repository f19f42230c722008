"""The bracket: all rungs, one after the other, within a budget of time.

Every decision follows from the readings in the journal, and from the times in them. So a run that
was killed and goes on decides as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deltakit.choose.decide.arms import Arm, Journal
from deltakit.choose.decide.climb import FEWEST_ARMS, Climb, by_turn, clock_of
from deltakit.choose.decide.halving import (
    MARGIN,
    Fate,
    arms_at_chance,
    caution_after,
    judge,
    most_kept,
    rank_correlation,
    scores_of,
    settled,
)
from deltakit.choose.decide.ladder import Ladder
from deltakit.choose.decide.opening import opened
from deltakit.choose.decide.watch import RungResult, Unwatched, Watch
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class BracketResult:
    """A bracket that has ended.

    Attributes:
        rungs: those that were run.
        seconds: what all of them took.
        slowdown: how much longer than predicted they took, 1 at the least.
        left_out: names of arms that did not begin, as a longer first rung left no time for them.
    """

    rungs: tuple[RungResult, ...]
    seconds: float
    slowdown: float
    left_out: tuple[str, ...] = ()


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

    The usual arm of each family goes first. Where most of them are at chance after the first rung,
    it was too short: the others begin at the next one, which has twice the steps.

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
    climb = Climb(clock=clock_of(ladder), journal=journal, watch=watch)
    clock = climb.clock
    opening = opened(arms, ladder, metric, climb, chance)
    alive, rungs, readings = list(opening.arms), opening.rungs, opening.readings
    results = list(opening.results)
    scores: dict[str, float] = {}
    for at, rung in enumerate(rungs):
        facts = [arm.facts for arm in alive]
        if at:
            if clock.room(alive, rung, rungs[at - 1].steps, at, len(rungs)) < FEWEST_ARMS:
                break
            watch.rung_begins(rung, facts)
        started = clock.spent - sum(each.seconds for each in readings.values())
        readings = climb.read(alive, rung, readings)
        scores, earlier = scores_of(readings, metric), scores
        correlation = rank_correlation(earlier, scores)
        majority = chance and chance(rung.rows)
        stuck = arms_at_chance(readings, majority, metric)
        if majority is not None and not earlier:
            earlier = dict.fromkeys(scores, metric.value(majority))
        room = most = len(alive)
        if at + 1 < len(rungs):
            room = clock.room(alive, rungs[at + 1], rung.steps, at + 1, len(rungs))
            most = most_kept(len(alive), correlation, len(stuck))
        verdicts = judge(
            facts,
            readings,
            metric,
            capacity=max(min(room, most), 1),
            margin=margin,
            caution=caution_after(correlation, first=at == 0),
            families=max(room, 1) if at == 0 else 0,
            at_chance=stuck,
            before=earlier if at + 1 < len(rungs) else None,
            floor=ladder.floor,
        )
        if at + 1 == len(rungs):
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
        readings = {}
    return BracketResult(
        rungs=tuple(results),
        seconds=clock.spent,
        slowdown=clock.slowdown,
        left_out=opening.left_out,
    )
