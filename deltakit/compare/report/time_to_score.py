"""The time that a method's training takes to a given score, and the score after a given time."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from deltakit.compare.records.result import Row
from deltakit.compare.records.training import EvalPoint, LearningCurve
from deltakit.compare.stats.metrics import Direction


def mean_curve(curves: Sequence[LearningCurve], before: float = 0.0) -> LearningCurve:
    """The mean over seeds.

    Args:
        curves: of trainings with the same number of steps.
        before: seconds of what had to be trained first.
    """
    return tuple(
        EvalPoint(
            step=several[0].step,
            seconds=before + fmean(each.seconds for each in several),
            score=fmean(each.score for each in several),
        )
        for several in zip(*curves, strict=True)
    )


@dataclass(frozen=True, kw_only=True)
class TimeToScore:
    """A comparison of the rows' learning curves.

    Attributes:
        target: the score half way between those that the floor and the ceiling end with; None
            where one of them is not there.
        equal: seconds after which the first of the rows is done, floors left out.
        to_target: by row, seconds until it is as good as the target; None where it never is.
        at_equal: by row, the score after `equal` seconds; None where it had none by then.
    """

    target: float | None
    equal: float
    to_target: Mapping[Row, float | None]
    at_equal: Mapping[Row, float | None]


def time_to_score(
    curves: Mapping[Row, LearningCurve],
    floor: Row | None,
    ceiling: Row | None,
    direction: Direction,
) -> TimeToScore | None:
    """The time to score of the rows' mean curves; None where there is only the floor.

    Args:
        curves: of the rows.
        floor: the row that trains the head alone, where there is one.
        ceiling: the row that trains everything, where there is one.
        direction: which scores are the better ones.
    """
    # On every base the floor is done first, and has least to show for it.
    ends = [p[-1].seconds for row, p in curves.items() if floor is None or row[0] != floor[0]]
    if not ends:
        return None
    equal = min(ends)
    known = [curves[row][-1].score for row in (floor, ceiling) if row is not None and row in curves]
    target = fmean(known) if len(known) == 2 else None
    return TimeToScore(
        target=target,
        equal=equal,
        to_target={row: _reaches(curve, target, direction) for row, curve in curves.items()},
        at_equal={row: _score_at(curve, equal) for row, curve in curves.items()},
    )


def _reaches(curve: LearningCurve, target: float | None, direction: Direction) -> float | None:
    """Seconds until a curve first reaches the target, on straight lines between its points."""
    if target is None:
        return None
    ranks = [direction.rank(each.score) for each in curve]
    goal = direction.rank(target)
    first = next((n for n, rank in enumerate(ranks) if rank >= goal), None)
    if first is None or first == 0:
        return None if first is None else curve[0].seconds
    before, after = curve[first - 1], curve[first]
    part = (goal - ranks[first - 1]) / (ranks[first] - ranks[first - 1])
    return before.seconds + part * (after.seconds - before.seconds)


def _score_at(curve: LearningCurve, seconds: float) -> float | None:
    """The score of a curve at a moment, on straight lines between its points."""
    after = bisect_left([each.seconds for each in curve], seconds)
    if after == len(curve):
        return curve[-1].score
    if curve[after].seconds == seconds:
        return curve[after].score
    if after == 0:
        return None
    low, high = curve[after - 1], curve[after]
    part = (seconds - low.seconds) / (high.seconds - low.seconds)
    return low.score + part * (high.score - low.score)
