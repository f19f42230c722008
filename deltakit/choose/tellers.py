"""Tellers: they receive what happens in a choice, for a display."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from deltakit.choose.candidates import Candidate
from deltakit.choose.decide.arms import ArmFacts
from deltakit.choose.decide.ladder import Ladder
from deltakit.choose.decide.watch import Unwatched, Watch


class Teller(Watch, Protocol):
    """Receives what happens in a choice, for a display."""

    def field(self, candidates: Sequence[Candidate], ruled_out: Mapping[str, str]) -> None:
        """The candidates are known, and which of them a constraint rules out."""

    def planned(self, ladder: Ladder, arms: Sequence[ArmFacts], folder: Path) -> None:
        """The ladder is known."""

    def finals(self, names: Sequence[str], seeds: int, steps: int) -> None:
        """The finals begin."""


class Quiet(Unwatched):
    """A teller that shows nothing."""

    def field(self, candidates: Sequence[Candidate], ruled_out: Mapping[str, str]) -> None:
        """Nothing."""

    def planned(self, ladder: Ladder, arms: Sequence[ArmFacts], folder: Path) -> None:
        """Nothing."""

    def finals(self, names: Sequence[str], seeds: int, steps: int) -> None:
        """Nothing."""
