"""The measuring protocol: how often things are timed, and what a learning curve is judged on."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deltakit.errors import InvalidConfig, unknown

VARIABLE = "DELTAKIT_PROTOCOL"
"""The environment variable that changes the protocol: ``step_repeats=3,curve_rows=100``."""

_MAY_BE_ZERO = (
    "step_warmup",
    "latency_warmup",
    "curve_points",
    "ratio_percent",
    "general_passages",
)
_LEAST = {**dict.fromkeys(_MAY_BE_ZERO, 0), "least_repeats": 2}


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """The number of repetitions of a measurement.

    Two actions are timed in pairs, and a pair has a ratio. After each pair from the `least` on, the
    95 % interval of the ratio is looked at: Student's t on the logarithms. Repetitions end where
    half of it is at most `percent` of the ratio, or at the `most`.

    Attributes:
        most: repetitions, at most.
        least: repetitions before the interval is looked at; two or more.
        percent: half the width at which the interval is narrow enough; zero takes the `most`.
    """

    most: int
    least: int = 2
    percent: int = 0


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The numbers of the measuring protocol. A run records them; runs that differ do not join.

    Before every timed forward pass the same pass runs once untimed, whatever these numbers are.
    Steps and passes are repeated until the interval of their ratio is narrow enough (`Repeats`).

    Attributes:
        ratio_percent: half the width, in per cent of the ratio, at which its 95 % interval is
            narrow enough; zero repeats everything as often as the numbers below allow.
        least_repeats: repetitions before the interval is looked at; two or more.
        step_repeats: timed training steps, in alternation with those of full fine-tuning, at most.
        step_warmup: untimed rounds before them.
        latency_repeats_b1: timed forward passes of one text, in alternation with the base's, at
            most.
        latency_repeats_b8: the same for eight texts.
        latency_warmup: untimed rounds before these, and before those by shape.
        shape_repeats: timed passes for each shape of ``--latency``, and each of its phases, at
            most.
        generated_tokens: tokens that are generated to time the decoding of one.
        handling_repeats: how often a delta is loaded, swapped and merged.
        inspected_texts: test examples on which the change inside the model is measured.
        inspected_repeats: timed passes for each number of layers dropped or members kept.
        curve_points: evaluations of a training on its way, the last one at its end; zero for none.
        curve_rows: validation examples of such an evaluation, at most.
        general_passages: passages of the general text that are read with and without a delta, at
            most; zero for none.

    Raises:
        InvalidConfig: a number is not whole, or too small.
    """

    step_repeats: int = 11
    step_warmup: int = 0
    latency_repeats_b1: int = 30
    latency_repeats_b8: int = 12
    latency_warmup: int = 1
    shape_repeats: int = 7
    generated_tokens: int = 8
    handling_repeats: int = 3
    inspected_texts: int = 8
    inspected_repeats: int = 7
    curve_points: int = 6
    curve_rows: int = 400
    ratio_percent: int = 3
    least_repeats: int = 4
    general_passages: int = 64

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = _LEAST.get(name, 1)
            if type(value) is not int or value < least:
                raise InvalidConfig(
                    f"Protocol: {name}={value!r} must be a whole number, {least} or more. "
                    "Give such a number, or leave it out for the default."
                )

    def repeats(self, most: int) -> Repeats:
        """The rule for a measurement that is repeated so often at most."""
        return Repeats(most=most, least=self.least_repeats, percent=self.ratio_percent)

    def to_dict(self) -> dict[str, int]:
        """The numbers by name, as JSON holds them."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, numbers: Mapping[str, Any]) -> Protocol:
        """The protocol with some numbers changed.

        Raises:
            UnknownName: a name is not one of the protocol's.
            InvalidConfig: a number is not whole, or too small.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in numbers:
            if name not in names:
                raise unknown("number of the measuring protocol", name, names)
        return cls(**numbers)

    @classmethod
    def from_record(cls, numbers: Mapping[str, Any]) -> Protocol:
        """The protocol that a run recorded. What earlier versions did not record, they did not do.

        Raises:
            UnknownName: a name is not one of the protocol's.
            InvalidConfig: a number is not whole, or too small.
        """
        return cls.from_dict({"ratio_percent": 0, "general_passages": 0, **numbers})

    @classmethod
    def from_environment(cls, default: Mapping[str, int] | None = None) -> Protocol:
        """The protocol with the numbers that the variable ``DELTAKIT_PROTOCOL`` changes.

        Args:
            default: numbers that hold where the variable does not change them.

        Raises:
            UnknownName: a name is not one of the protocol's.
            InvalidConfig: the variable is not of the form ``name=number,name=number``.
        """
        parts = [part for part in os.environ.get(VARIABLE, "").split(",") if part.strip()]
        return cls.from_dict({**(default or {}), **dict(map(_number, parts))})


def _number(part: str) -> tuple[str, int]:
    name, _, value = part.partition("=")
    try:
        return name.strip(), int(value)
    except ValueError:
        raise InvalidConfig(
            f"{VARIABLE}: {part.strip()!r} is not a name and a whole number. "
            "Write step_repeats=3,curve_rows=100."
        ) from None


EARLIER = Protocol(step_warmup=1, latency_warmup=2, ratio_percent=0, general_passages=0)
"""The defaults before there was a rule, and the protocol of runs whose files do not record it."""

EARLIER_QUICK_STEPS = 6
"""The `step_repeats` of the profile ``quick`` in earlier versions."""
