"""The opening of a bracket: the first rung, made longer where most methods are at chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from deltakit.choose.decide.arms import Arm, Reading, Rung
from deltakit.choose.decide.climb import Climb, in_turn
from deltakit.choose.decide.halving import arms_at_chance, judge, scores_of
from deltakit.choose.decide.ladder import Ladder
from deltakit.choose.decide.rungs import joining, longer_rungs
from deltakit.choose.decide.watch import RungResult
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class Opening:
    """The beginning of a bracket, up to a first rung that is long enough.

    Attributes:
        results: of the rungs that were too short.
        arms: those of the rung that judges first.
        rungs: that one and those after it.
        readings: of that rung, of the usual arm of each family.
        left_out: names of arms that a longer rung has no time for.
    """

    results: tuple[RungResult, ...]
    arms: tuple[Arm, ...]
    rungs: tuple[Rung, ...]
    readings: Mapping[str, Reading]
    left_out: tuple[str, ...]


def opened(
    arms: Sequence[Arm],
    ladder: Ladder,
    metric: Metric,
    climb: Climb,
    chance: Callable[[int], Predictions] | None,
) -> Opening:
    """Trains the usual arm of each family until most of them have left chance."""
    by_name = {arm.facts.name: arm for arm in arms}
    alive = in_turn([by_name[name] for name in ladder.arms])
    heads = {arm.facts.name for arm in _firsts(alive)}
    rungs, results = ladder.rungs, []
    while True:
        rung = rungs[0]
        begun = [arm for arm in alive if arm.facts.name in heads]
        waiting = [arm for arm in alive if arm.facts.name not in heads]
        climb.watch.rung_begins(rung, [arm.facts for arm in begun])
        readings = climb.read(begun, rung, {})
        stuck = arms_at_chance(readings, chance and chance(rung.rows), metric)
        longer = longer_rungs(rung, rungs[-1])
        if 2 * len(stuck) <= len(readings) or not longer:
            break
        results.append(_too_short(rung, begun, readings, metric, stuck))
        climb.watch.rung_ends(results[-1], metric)
        trained = scores_of(readings, metric)
        begun = [arm for arm in begun if arm.facts.name in trained]
        joined = joining(
            [arm.facts for arm in begun],
            [arm.facts for arm in waiting],
            longer,
            before=rung.steps,
            seconds=climb.clock.planned,
        )
        names = {arm.name for arm in joined}
        alive = [*begun, *(arm for arm in waiting if arm.facts.name in names)]
        rungs = longer
    if waiting:
        climb.watch.others_begin(rung, [arm.facts for arm in waiting])
    kept = {arm.facts.name for arm in alive}
    begun_once = {verdict.arm for result in results for verdict in result.verdicts}
    return Opening(
        results=tuple(results),
        arms=tuple(alive),
        rungs=rungs,
        readings=readings,
        left_out=tuple(name for name in ladder.arms if name not in kept | begun_once),
    )


def _too_short(
    rung: Rung,
    begun: Sequence[Arm],
    readings: Mapping[str, Reading],
    metric: Metric,
    stuck: Collection[str],
) -> RungResult:
    """The result of a rung that judges no arm; one that failed is out."""
    verdicts = judge(
        [arm.facts for arm in begun],
        readings,
        metric,
        capacity=len(begun),
        caution=math.inf,
        at_chance=stuck,
    )
    seconds = sum(reading.seconds for reading in readings.values())
    return RungResult(
        rung=rung, verdicts=verdicts, correlation=None, seconds=seconds, too_short=True
    )


def _firsts(arms: Sequence[Arm]) -> list[Arm]:
    """The first arm of each family."""
    found: dict[str, Arm] = {}
    for arm in arms:
        found.setdefault(arm.facts.family, arm)
    return list(found.values())
