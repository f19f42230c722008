"""The record of a row's trained delta: all that it takes to put it on its base again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class KeptDelta:
    """The place of a cell's trained delta, and the base that it was trained on.

    Attributes:
        folder: its folder, from the run folder.
        method: the method, as `deltakit.core.method.method_to_dict` has it.
        weights: the weight format of the base.
        dtype: what the base computes in, by torch's name; "" is the base's own.
        task: what the base is loaded for, as `deltakit.load_base` takes it.
        outputs: the number of its head's outputs; None where the model decides.
        problem: transformers' name for what the head is trained on.
    """

    folder: str
    method: Mapping[str, Any]
    weights: str
    dtype: str
    task: str
    outputs: int | None = None
    problem: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KeptDelta:
        """The inverse of `to_dict`; an unknown field raises TypeError."""
        return cls(**data)
