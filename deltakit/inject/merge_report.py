"""The error of folding deltas into weights, linear by linear."""

import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class MergedLinear:
    """The error of merging in one linear. W is its weight, W' the exact result.

    Attributes:
        path: its module's name in the model.
        effect: ‖W' - W‖, what the deltas change.
        error: ‖V - W'‖, with V the weight that it has now: from rounding or quantising again.
    """

    path: str
    effect: float
    error: float

    @property
    def relative(self) -> float:
        """The error as a part of the effect."""
        return self.error / self.effect if self.effect else 0.0


@dataclass(frozen=True, kw_only=True, repr=False)
class MergeReport:
    """The errors of merging. Prints as a table, the worst linear first.

    Attributes:
        linears: the linears that have other weights.
        folded: the sites whose deltas are multiplied out and go on running there.
    """

    linears: tuple[MergedLinear, ...]
    folded: tuple[str, ...] = ()

    @property
    def relative(self) -> float:
        """The error of all linears together, as a part of the effect of all together."""
        effect = math.hypot(*(each.effect for each in self.linears))
        return math.hypot(*(each.error for each in self.linears)) / effect if effect else 0.0

    @property
    def largest(self) -> float:
        """The largest error of one linear, as a part of its own effect."""
        return max((each.relative for each in self.linears), default=0.0)

    @property
    def mean(self) -> float:
        """The mean over the linears of the error, each as a part of its own effect."""
        return sum(each.relative for each in self.linears) / max(1, len(self.linears))

    def __str__(self) -> str:
        from tabulate import tabulate

        worst = sorted(self.linears, key=lambda each: -each.relative)
        table = [(e.path, f"{e.effect:.3g}", f"{e.error:.3g}", f"{e.relative:.2%}") for e in worst]
        total = f"error {self.relative:.2%} of the effect of {len(table)} changed linears"
        if self.folded:
            total += f"; folded at {len(self.folded)} sites"
        if not table:
            return total
        headers = ("linear", "effect", "error", "part")
        align = ("left", "right", "right", "right")
        return f"{tabulate(table, headers, colalign=align, disable_numparse=True)}\n\n{total}"

    __repr__ = __str__
