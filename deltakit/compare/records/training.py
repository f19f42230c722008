"""The record of a training: its time, losses and learning curve."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EvalPoint:
    """A point of a learning curve.

    Attributes:
        step: after how many steps.
        seconds: the time of these steps alone, without that of evaluating.
        score: on the validation split.
    """

    step: int
    seconds: float
    score: float


LearningCurve = tuple[EvalPoint, ...]
"""The points of one training, in order."""


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """The record of one training.

    Attributes:
        seconds: wall time of its steps and their data loading, without that of evaluating.
        steps: optimiser steps.
        examples: of the training split.
        losses: one for each step.
        joules: energy that the machine's processors took meanwhile; None where it is not known.
        machine: where it ran; None where that is not known.
        learning_curve: its score on the way; empty where it was not evaluated. Files call it
            "pace".
    """

    seconds: float
    steps: int
    examples: int
    losses: tuple[float, ...]
    joules: float | None = None
    machine: str | None = None
    learning_curve: LearningCurve = ()
