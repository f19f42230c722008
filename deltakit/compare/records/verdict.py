"""A score of a row by another library, as plain data that comes back from disk unchanged."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One score by another library.

    Attributes:
        judge: its name for ``--with``.
        version: the version of the library.
        task: the library's name of the task.
        metric: the library's name of the metric.
        value: the score, as the library has it.
        stderr: its standard error; None where the library gives none.
        higher: whether higher scores are better; None where the library does not say.
        merged: whether the delta was folded into the weights of the base.
        examples: how many of the task's examples were asked; None where it is not known.
        of: how many the task has.
        shots: how many solved examples were before each.
    """

    judge: str
    version: str
    task: str
    metric: str
    value: float
    stderr: float | None = None
    higher: bool | None = None
    merged: bool = False
    examples: int | None = None
    of: int | None = None
    shots: int = 0

    @property
    def title(self) -> str:
        """The title of its column. Verdicts of one title answer the same question."""
        parts = [f"{self.judge}: {self.task} {self.metric}"]
        parts += [f"{self.shots} shots"] if self.shots else []
        parts += [f"first {self.examples}"] if self.examples != self.of else []
        parts += ["merged"] if self.merged else []
        return ", ".join(parts) + (" ↓" if self.higher is False else "")

    def to_dict(self) -> dict[str, Any]:
        """The verdict as JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Verdict:
        """The inverse of `to_dict`; an unknown field raises TypeError."""
        return cls(**data)
