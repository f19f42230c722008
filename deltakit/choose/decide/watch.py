"""The result of a rung, and what is told while rungs run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from deltakit.choose.decide.arms import ArmFacts, Reading, Rung
from deltakit.choose.decide.halving import Verdict
from deltakit.compare.stats.metrics import Metric


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """A rung that has ended.

    Attributes:
        rung: its steps and rows.
        verdicts: the fate of every arm that was in it, best first.
        correlation: Spearman's rank correlation with the rung before it, where there is one.
        seconds: what it took.
        too_short: whether most methods were at chance, so that it judged none.
    """

    rung: Rung
    verdicts: tuple[Verdict, ...]
    correlation: float | None
    seconds: float
    too_short: bool = False


class Watch(Protocol):
    """Receives what happens, for a display."""

    def rung_begins(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """A rung begins with these arms."""

    def others_begin(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """The first rung is long enough, and begins for the other arms too."""

    def arm_read(self, rung: Rung, arm: ArmFacts, reading: Reading) -> None:
        """An arm has ended the rung."""

    def rung_ends(self, result: RungResult, metric: Metric) -> None:
        """A rung has ended; its scores are the metric's."""


class Unwatched:
    """A watch that shows nothing."""

    def rung_begins(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """Nothing."""

    def others_begin(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """Nothing."""

    def arm_read(self, rung: Rung, arm: ArmFacts, reading: Reading) -> None:
        """Nothing."""

    def rung_ends(self, result: RungResult, metric: Metric) -> None:
        """Nothing."""
