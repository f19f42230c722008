"""Clocks: what the budget of a choice is counted in."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """A clock that a choice reads, and that it tells what it has done."""

    def now(self) -> float:
        """Seconds since a moment that does not change."""

    def worked(self, *, steps: int = 0, rows: int = 0) -> None:
        """So many training steps were done, and so many rows were predicted."""


class WallClock:
    """The time that passes. It takes no notice of work."""

    def now(self) -> float:
        return time.perf_counter()

    def worked(self, *, steps: int = 0, rows: int = 0) -> None:
        """Nothing."""
