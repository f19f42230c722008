"""Successive halving under noise: which arms leave after a rung, and why.

Successive halving (Jamieson and Talwalkar 2016) keeps a fixed share. Here an arm counts as worse
only where its paired interval excludes the leader. Arms that the budget has no room for leave too,
with another reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from deltakit.choose.decide.arms import ArmFacts, Reading
from deltakit.compare.stats.metrics import Metric

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
        reason: why it failed.
    """

    arm: str
    fate: Fate
    score: float | None = None
    behind: float | None = None
    detectable: float | None = None
    reason: str | None = None


def judge(
    arms: Sequence[ArmFacts],
    readings: Mapping[str, Reading],
    metric: Metric,
    *,
    capacity: int,
    caution: float = 1.0,
    margin: float = MARGIN,
    keep_families: bool = False,
) -> tuple[Verdict, ...]:
    """The fate of every arm of a rung, best first.

    An arm is worse where it is behind the leader by more than `caution` times the difference that
    can be detected. Of the others, `capacity` arms go on: in steps of `margin` points by score, and
    within a step by cost.

    Args:
        arms: those of the rung.
        readings: their readings, by name.
        metric: the score.
        capacity: arms that the budget has room for.
        caution: factor on the detectable difference.
        margin: points that do not matter.
        keep_families: whether the best arm of every family goes on, whatever its score.
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
        if detectable is not None and behind > caution * detectable
    }
    order = sorted(
        scores,
        key=lambda name: (
            _tier(found[name][0], margin),
            _cost(by_name, name),
            found[name][0],
            name,
        ),
    )
    kept = [name for name in order if name not in beaten][:capacity]
    if keep_families:
        kept += _family_heads(order, kept, by_name)
    verdicts = [
        Verdict(
            arm=name,
            fate=_fate(name, kept, beaten),
            score=scores[name],
            behind=found[name][0],
            detectable=found[name][1],
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


def _family_heads(
    order: Sequence[str], kept: Sequence[str], by_name: Mapping[str, ArmFacts]
) -> list[str]:
    """The best arm of each family that has none among `kept`."""
    present = {by_name[name].family for name in kept}
    heads: dict[str, str] = {}
    for name in order:
        if by_name[name].family not in present:
            heads.setdefault(by_name[name].family, name)
    return list(heads.values())


def _fate(name: str, kept: Sequence[str], beaten: set[str]) -> Fate:
    if name in kept:
        return Fate.KEPT
    return Fate.BEATEN if name in beaten else Fate.NO_BUDGET


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


def most_kept(arms: int, correlation: float | None) -> int:
    """The most arms that go on, whatever room there is: half, or three quarters at low trust.

    Args:
        arms: how many were in the rung.
        correlation: that of this rung and the one before it, where there is one.
    """
    low = correlation is not None and correlation < LOW_CORRELATION
    return max(FEWEST, math.ceil(arms * (0.75 if low else 0.5)))


def caution_after(rung: int, correlation: float | None) -> float:
    """The factor on the detectable difference at the end of a rung.

    Args:
        rung: its number.
        correlation: that of this rung and the one before it, where there is one.
    """
    if correlation is not None and correlation < LOW_CORRELATION:
        return CAUTION_LOW
    return CAUTION_FIRST if rung == 1 else 1.0


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
