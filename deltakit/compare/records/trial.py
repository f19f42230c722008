"""The learning rates that a search tried, and the one it chose."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Edge(StrEnum):
    """The place of a choice in the grid; at an edge a wider grid might hold a better one."""

    LOW = "low"
    HIGH = "high"
    INSIDE = ""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One rate that was tried.

    Attributes:
        lr: the rate.
        score: the metric on the validation split; None where the training failed.
        seconds: how long it trained.
        reason: why it failed.
    """

    lr: float
    score: float | None
    seconds: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The rate that a search ended with, and all that it tried."""

    lr: float
    trials: tuple[Trial, ...]

    @property
    def edge(self) -> Edge:
        """The place in the grid. A grid of one rate has no edges."""
        rates = sorted(trial.lr for trial in self.trials)
        if len(rates) < 2 or rates[0] < self.lr < rates[-1]:
            return Edge.INSIDE
        return Edge.LOW if self.lr == rates[0] else Edge.HIGH

    @property
    def seconds(self) -> float:
        """Training time of all trials."""
        return sum(trial.seconds or 0.0 for trial in self.trials)

    def to_plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {"lr": self.lr, "edge": self.edge.value, "trials": [vars(t) for t in self.trials]}

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> "Choice":
        """The inverse of `to_plain`."""
        return cls(lr=content["lr"], trials=tuple(Trial(**each) for each in content["trials"]))
