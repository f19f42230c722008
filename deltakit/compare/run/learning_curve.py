"""How fast a training gets somewhere: its score on the validation split, a few times on the way.

A step that is faster may need more of them, so step times say nothing of the time to a result.
Rates rise and fall with a schedule that is made for the whole training: a score on the way is lower
than what a training of that length would have ended with.
"""

from collections.abc import Callable

from deltakit.compare.measure.hardware import Meter
from deltakit.compare.records.training import EvalPoint

EVALUATIONS = 6
"""How often a training is judged; the last time is at its end."""
EVALUATED_ROWS = 400
"""Rows of the validation split that it is judged on, at most."""


def eval_steps(steps: int) -> frozenset[int]:
    """The steps after which a training is judged, evenly over it."""
    return frozenset(
        max(1, round(steps * part / EVALUATIONS)) for part in range(1, 1 + EVALUATIONS)
    )


class IntermediateEval:
    """Judges a training at its marks.

    Args:
        steps: of the whole training.
        judge: the score of the model as it is now.
        meter: paused meanwhile.
    """

    def __init__(self, steps: int, judge: Callable[[], float], meter: Meter) -> None:
        self._marks, self._judge, self._meter = eval_steps(steps), judge, meter
        self.pace: list[EvalPoint] = []

    def after(self, step: int) -> None:
        """Told of every step that has been made."""
        if step in self._marks:
            seconds = self._meter.seconds()
            with self._meter.paused():
                score = self._judge()
            self.pace.append(EvalPoint(step=step, seconds=seconds, score=score))
