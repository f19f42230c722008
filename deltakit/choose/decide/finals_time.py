"""The time of the finals: what is left out where they take longer than planned.

It reads no clock. It adds up the stored times of trainings, so a run that was killed and goes on
leaves out what an undisturbed one does.
"""

from __future__ import annotations

from dataclasses import dataclass

ESSENTIAL = 2
"""Rows of the finals that are trained whatever they take: the floor and the leader."""


@dataclass(kw_only=True)
class FinalsTime:
    """The time that is left for the finals, and what was spent of it.

    Attributes:
        budget: seconds for all of the finals.
        once: seconds that they take once, after the trainings.
        measured: seconds of measuring one trained cell.
        spent: seconds of the trainings so far.
        trainings: how many there were, those that find a rate included.
        slowest: seconds of the training that took the longest.
    """

    budget: float
    once: float = 0.0
    measured: float = 0.0
    spent: float = 0.0
    trainings: int = 0
    slowest: float = 0.0

    def took(self, seconds: float, trainings: int) -> None:
        """Some trainings were done."""
        self.spent += seconds
        self.trainings += trainings
        self.slowest = max(self.slowest, seconds / trainings)

    def has_room(self, trainings: int, cells: int) -> bool:
        """True if there is time for more trainings, and for measuring that many cells in all."""
        after = self.once + cells * self.measured
        return self.spent + trainings * self.slowest + after <= self.budget

    def has_room_for_row(self, rows: int, trainings: int) -> bool:
        """True if there is time for one more row of the finals, and then for a second seed of all.

        Args:
            rows: those that are trained already.
            trainings: of the row's first seed, those that find its rate included.
        """
        return self.has_room(trainings + rows + 1, 2 * (rows + 1))

    def has_room_for_seed(self, rows: int, seeds: int) -> bool:
        """True if there is time for one more seed of every row.

        Args:
            rows: of the finals.
            seeds: those that are trained already.
        """
        return self.has_room(rows, rows * (seeds + 1))
