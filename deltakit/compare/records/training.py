"""What is kept of a training, beside what it has trained."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvalPoint:
    """How good a training was at one moment.

    Attributes:
        step: after how many steps.
        seconds: the time of these steps alone, without that of judging.
        score: on the validation split.
    """

    step: int
    seconds: float
    score: float


LearningCurve = tuple[EvalPoint, ...]
"""The checkpoints of one training, in order."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a training went.

    `seconds` is the wall time of its steps and their data loading, `joules` what the machine's
    processors took meanwhile, where they say; `machine` is what it ran on, where that is known;
    `pace` is how good it was on the way, where it was judged, which is not part of the time.
    """

    seconds: float
    steps: int
    examples: int
    losses: tuple[float, ...]
    joules: float | None = None
    machine: str | None = None
    pace: LearningCurve = ()
