"""Successive halving under noise: which arms leave after a rung, and why.

Successive halving (Jamieson and Talwalkar 2016) keeps a fixed share. Here an arm counts as worse
only where its paired interval excludes the leader, and where more steps are not likely to change
that. An arm that cannot be told from the majority's prediction is at chance, and one that gains as
much from rung to rung as it is behind is still learning.
Arms that the budget has no room for leave too, with another reason.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from deltakit.choose.decide.arms import ArmFacts, Reading
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import Metric
from deltakit.compare.stats.significance import LEVEL

MARGIN = 0.5
"""Points of difference that do not matter: the default."""

CAUTION_FIRST = 1.5
"""Times the detectable difference by which an arm must be behind to leave at the first rung."""

CAUTION_LOW = 2.0
"""The same where rungs order arms differently."""

LOW_CORRELATION = 0.5
"""Rungs whose rank correlation is lower are trusted less."""

FEWEST = 4
"""Arms that a rank correlation takes."""


class Fate(Enum):
    """The outcome of a rung for one arm."""

    KEPT = "goes on"
    BEATEN = "worse"
    NO_BUDGET = "no room to go on"
    AT_CHANCE = "at chance still"
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The fate of one arm at one rung.

    Attributes:
        arm: its name.
        fate: what became of it.
        score: on the rung's validation examples, as the metric has it; None where it failed.
        behind: points behind the leader; None where it failed.
        detectable: points that this rung would probably have found; None without spread.
        at_chance: whether it cannot be told from the majority's prediction.
        reason: why it failed.
    """

    arm: str
    fate: Fate
    score: float | None = None
    behind: float | None = None
    detectable: float | None = None
    at_chance: bool = False
    reason: str | None = None


def judge(
    arms: Sequence[ArmFacts],
    readings: Mapping[str, Reading],
    metric: Metric,
    *,
    capacity: int,
    caution: float = 1.0,
    margin: float = MARGIN,
    families: int = 0,
    at_chance: Collection[str] = (),
    before: Mapping[str, float] | None = None,
    floor: str | None = None,
) -> tuple[Verdict, ...]:
    """The fate of every arm of a rung, best first.

    An arm is worse where it is behind the leader by more than `caution` times the difference that
    can be detected, and what it has gained since the rung before: it would still be behind if it
    gained as much again and the leader nothing. Both have left chance. Of the others, `capacity`
    arms go on: in steps of `margin` points by score, and within a step by cost. Arms at chance
    come after them, in the order of `arms`, and the floor's come last: the finals have it anyway.

    Args:
        arms: those of the rung, the ones that are expected to be good first.
        readings: their readings, by name.
        metric: the score.
        capacity: arms that go on by their score.
        caution: factor on the detectable difference.
        margin: points that do not matter.
        families: the most arms that go on so that every family keeps its best, whatever its score.
        at_chance: names of the arms that are at chance (`arms_at_chance`).
        before: scores at the rung before; of an arm without one, nothing is gained.
        floor: the family that trains the task head alone. It goes on by its score alone.
    """
    scores = scores_of(readings, metric)
    by_name = {arm.name: arm for arm in arms}
    if not scores:
        return tuple(_failed(arm, readings) for arm in arms)
    leader = max(
        scores, key=lambda name: (metric.direction.rank(scores[name]), -_cost(by_name, name))
    )
    found = {name: _behind(leader, name, readings, metric) for name in scores}
    beaten = {
        name
        for name, (behind, detectable) in found.items()
        if detectable is not None
        and behind > caution * detectable + _gain(name, before or {}, scores, metric)
        and not {name, leader} & set(at_chance)
    }
    learnt = sorted(
        (name for name in scores if name not in at_chance),
        key=lambda name: (
            _tier(found[name][0], margin),
            _cost(by_name, name),
            found[name][0],
            name,
        ),
    )
    stuck = [name for name in by_name if name in scores and name in at_chance]
    order = [*learnt, *sorted(stuck, key=lambda name: by_name[name].family == floor)]
    kept = [name for name in order if name not in beaten][:capacity]
    methods = {name: arm for name, arm in by_name.items() if arm.family != floor}
    kept = _with_families(order, kept, methods, families)
    verdicts = [
        Verdict(
            arm=name,
            fate=_fate(name, kept, beaten, at_chance),
            score=scores[name],
            behind=found[name][0],
            detectable=found[name][1],
            at_chance=name in at_chance,
        )
        for name in order
    ]
    lost = [_failed(arm, readings) for arm in arms if arm.name not in scores]
    return (*verdicts, *lost)


def scores_of(readings: Mapping[str, Reading], metric: Metric) -> dict[str, float]:
    """The scores of the arms that have predictions, as the metric has them."""
    made = {name: reading.predictions for name, reading in readings.items()}
    return {name: metric.value(each) for name, each in made.items() if each is not None}


def _cost(by_name: Mapping[str, ArmFacts], name: str) -> float:
    return by_name[name].cost


def _tier(behind: float, margin: float) -> int:
    """Steps of `margin` points behind the leader; the rounding of a float makes no step."""
    return int(max(0.0, behind - 1e-9) / margin)


def _behind(
    leader: str, name: str, readings: Mapping[str, Reading], metric: Metric
) -> tuple[float, float | None]:
    """Points behind the leader, and the detectable difference."""
    first, second = readings[leader].predictions, readings[name].predictions
    assert first is not None and second is not None
    if leader == name:
        return 0.0, None
    found = metric.difference([first], [second])
    return metric.direction.rank(found.points), found.detectable


def _gain(
    name: str, before: Mapping[str, float], now: Mapping[str, float], metric: Metric
) -> float:
    """Points that an arm has gained; zero where it has lost some."""
    rank = metric.direction.rank
    return max(0.0, 100 * (rank(now[name]) - rank(before[name]))) if name in before else 0.0


def arms_at_chance(
    readings: Mapping[str, Reading], chance: Predictions | None, metric: Metric
) -> frozenset[str]:
    """The arms whose paired interval against the majority's prediction includes zero.

    An arm that is behind it is at chance too.

    Args:
        readings: of a rung, by name.
        chance: the majority's prediction for the rung's examples; None where there is none.
        metric: the score.
    """
    if chance is None:
        return frozenset()
    made = {name: reading.predictions for name, reading in readings.items()}
    return frozenset(
        name
        for name, each in made.items()
        if each is not None and not _better(each, chance, metric)
    )


def _better(one: Predictions, other: Predictions, metric: Metric) -> bool:
    found = metric.difference([one], [other])
    return metric.direction.rank(found.points) > 0 and found.p <= LEVEL


def _with_families(
    order: Sequence[str], kept: Sequence[str], by_name: Mapping[str, ArmFacts], most: int
) -> list[str]:
    """`kept` and the best arm of each family that has none there.

    Where they are more than `most`, the best of each family go before a second one of any.
    """
    if not most:
        return list(kept)
    heads: dict[str, str] = {}
    for name in (*kept, *order):
        if name in by_name:
            heads.setdefault(by_name[name].family, name)
    firsts = list(heads.values())
    return [*firsts, *(name for name in kept if name not in firsts)][:most]


def settled(verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The verdicts of the last rung: an arm at chance does not go on where another has learnt."""
    learnt = any(each.fate is Fate.KEPT and not each.at_chance for each in verdicts)
    return tuple(
        replace(each, fate=Fate.AT_CHANCE)
        if learnt and each.at_chance and each.fate is Fate.KEPT
        else each
        for each in verdicts
    )


def _fate(name: str, kept: Sequence[str], beaten: set[str], at_chance: Collection[str]) -> Fate:
    if name in kept:
        return Fate.KEPT
    if name in beaten:
        return Fate.BEATEN
    return Fate.AT_CHANCE if name in at_chance else Fate.NO_BUDGET


def _failed(arm: ArmFacts, readings: Mapping[str, Reading]) -> Verdict:
    reading = readings.get(arm.name)
    if reading is None:
        return Verdict(arm=arm.name, fate=Fate.NO_BUDGET)
    return Verdict(arm=arm.name, fate=Fate.FAILED, reason=reading.reason)


def rank_correlation(before: Mapping[str, float], after: Mapping[str, float]) -> float | None:
    """Spearman's correlation of two rungs' scores, over the arms of both.

    None for fewer than four arms, or where a rung gives all of them one score.
    """
    from scipy.stats import spearmanr

    both = sorted(set(before) & set(after))
    if len(both) < FEWEST:
        return None
    one, other = ([scores[name] for name in both] for scores in (before, after))
    if len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(spearmanr(one, other).statistic)


def most_kept(arms: int, correlation: float | None, at_chance: int = 0) -> int:
    """The most arms that go on, whatever room there is.

    It is half of them, three quarters at low trust, and all where half of them are at chance.

    Args:
        arms: how many were in the rung.
        correlation: that of this rung and the one before it, where there is one.
        at_chance: how many are at chance.
    """
    if 2 * at_chance >= arms:
        return arms
    low = correlation is not None and correlation < LOW_CORRELATION
    return max(FEWEST, math.ceil(arms * (0.75 if low else 0.5)))


def caution_after(correlation: float | None, *, first: bool) -> float:
    """The factor on the detectable difference at the end of a rung.

    Args:
        correlation: that of this rung and the one before it, where there is one.
        first: whether it is the first that judges.
    """
    if correlation is not None and correlation < LOW_CORRELATION:
        return CAUTION_LOW
    return CAUTION_FIRST if first else 1.0


def finalists(
    arms: Sequence[ArmFacts], verdicts: Sequence[Verdict], most: int
) -> tuple[ArmFacts, ...]:
    """At most `most` arms of different candidates, the best rate of each.

    Arms that are worse are left out. The leader is the first, the others are in their order.
    """
    by_name = {arm.name: arm for arm in arms}
    alive = [v for v in verdicts if v.fate in (Fate.KEPT, Fate.NO_BUDGET) and v.score is not None]
    ranked = sorted(alive, key=lambda v: v.behind != 0.0)
    best_rate: dict[str, Verdict] = {}
    for verdict in sorted(alive, key=lambda v: (v.behind or 0.0, by_name[v.arm].lr)):
        best_rate.setdefault(by_name[verdict.arm].candidate, verdict)
    candidates = dict.fromkeys(by_name[v.arm].candidate for v in ranked)
    return tuple(by_name[best_rate[each].arm] for each in list(candidates)[:most])


def best_of_the_worse(
    arms: Sequence[ArmFacts], verdicts: Sequence[Verdict]
) -> tuple[ArmFacts, ...]:
    """The arm that is least behind, where the floor beat all of them; none without a score."""
    by_name = {arm.name: arm for arm in arms}
    scored = [verdict for verdict in verdicts if verdict.behind is not None]
    ranked = sorted(scored, key=lambda verdict: verdict.behind or 0.0)
    return tuple(by_name[verdict.arm] for verdict in ranked[:1])
