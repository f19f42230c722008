"""Learning curves: the score on the validation split, a few times on the way through a training.

A method with a faster step may need more steps, so a step time is not the time to a result. The
learning rate follows a schedule that is made for the whole training: a score on the way is lower
than the score at the end of a training of that length.
"""

from collections.abc import Callable
from dataclasses import dataclass

from deltakit.compare.measure.hardware import Meter
from deltakit.compare.records.training import EvalPoint


@dataclass(frozen=True, kw_only=True)
class CurveScore:
    """The way in which points of a learning curve are made.

    Attributes:
        score: evaluates the model as it is now.
        points: evaluations over a training, the last one at its end.
    """

    score: Callable[[], float]
    points: int


def eval_steps(steps: int, points: int) -> frozenset[int]:
    """The steps after which a training is evaluated, evenly over it."""
    return frozenset(max(1, round(steps * part / points)) for part in range(1, 1 + points))


class IntermediateEval:
    """Evaluates a training at the steps of its learning curve.

    Args:
        steps: of the whole training.
        curve: how a point of the curve is made.
        meter: paused meanwhile.
    """

    def __init__(self, steps: int, curve: CurveScore, meter: Meter) -> None:
        self._steps, self._score = eval_steps(steps, curve.points), curve.score
        self._meter = meter
        self.points: list[EvalPoint] = []

    def after(self, step: int) -> None:
        """Called after every step."""
        if step in self._steps:
            seconds = self._meter.seconds()
            with self._meter.paused():
                score = self._score()
            self.points.append(EvalPoint(step=step, seconds=seconds, score=score))
