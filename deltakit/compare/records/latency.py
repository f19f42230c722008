"""A shape of a batch, and the time that a pass takes for it."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a batch: a number of texts, and the tokens of each."""

    texts: int
    tokens: int

    def __str__(self) -> str:
        return f"{self.texts}x{self.tokens}"


def shape_of(text: str) -> Shape:
    """Reads "8x128": eight texts of 128 tokens.

    Raises:
        InvalidConfig: it is something else.
    """
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if found is None:
        raise InvalidConfig(
            f"--latency {text!r}: write texts and tokens as in 8x128, several as 1x128,8x128."
        )
    return Shape(texts=int(found[1]), tokens=int(found[2]))


@dataclass(frozen=True, kw_only=True)
class ShapeTime:
    """The time of one phase for one shape: a row of ``latency.csv``.

    Attributes:
        shape: as in "8x128".
        phase: "forward", "prefill" or "decode"; the last is for one token of each text.
        ms: the median.
        iqr_ms: the interquartile range.
        vs_base: the median ratio to the bare base, measured in alternation.
        merged_vs_base: the same with the method merged; None where it does not merge.
    """

    shape: str
    phase: str
    ms: float
    iqr_ms: float
    vs_base: float
    merged_vs_base: float | None
