"""Arms of a choice: one method at one size, on one base, at one learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from deltakit.compare.records.result import Predictions


@dataclass(frozen=True, kw_only=True)
class ArmFacts:
    """The facts of an arm that are known before it is trained.

    Attributes:
        name: unique among the arms.
        candidate: the method at its size and its base. Arms of one candidate differ in their rate.
        family: the method without its size. Arms of one family differ in size, base and rate.
        lr: the learning rate.
        cost: what orders arms that cannot be told apart: deployed parameters.
        step_seconds: one training step.
        row_seconds: one row of an evaluation.
        fixed_seconds: loading the model and storing the arm, once a rung.
        usual_size: whether the size is the method's own.
        usual_rate: whether the rate is the method's own.
    """

    name: str
    candidate: str
    family: str
    lr: float
    cost: float
    step_seconds: float
    row_seconds: float = 0.0
    fixed_seconds: float = 0.0
    usual_size: bool = True
    usual_rate: bool = True

    def seconds(self, steps: int, rows: int) -> float:
        """The predicted time of some training steps and one evaluation."""
        return self.fixed_seconds + steps * self.step_seconds + rows * self.row_seconds


@dataclass(frozen=True, kw_only=True)
class Rung:
    """One rung of the ladder.

    Attributes:
        number: counted from 1.
        steps: training steps that an arm has taken when it leaves the rung.
        rows: validation examples that it is judged on.
    """

    number: int
    steps: int
    rows: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """An arm at the end of a rung.

    Attributes:
        steps: training steps that it has taken.
        seconds: time that this rung took, evaluation included.
        predictions: on the rung's validation examples; None where the training failed.
        reason: why it failed.
    """

    steps: int
    seconds: float
    predictions: Predictions | None
    reason: str | None = None


class Arm(Protocol):
    """An arm that can be trained on from where it stopped."""

    @property
    def facts(self) -> ArmFacts:
        """The facts that are known before it is trained."""

    def advance(self, rung: Rung) -> Reading:
        """Trains until the rung's number of steps, and predicts its validation examples."""


class Journal(Protocol):
    """The readings that are kept, each whole or absent."""

    def reading(self, arm: str, rung: int) -> Reading | None:
        """The reading of an arm at a rung, or None."""

    def keep(self, arm: str, rung: int, reading: Reading) -> None:
        """Stores a reading."""


class Memory:
    """A journal that ends with the process."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], Reading] = {}

    def reading(self, arm: str, rung: int) -> Reading | None:
        return self.kept.get((arm, rung))

    def keep(self, arm: str, rung: int, reading: Reading) -> None:
        self.kept[arm, rung] = reading
