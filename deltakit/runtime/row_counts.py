"""From the entries of a `PerRow` to the rows that a module of the model is given.

A module may have more rows than the batch: the choices of multiple choice are folded into them,
and `generate` repeats each row for its beams. It may have fewer, where an encoder runs before rows
are repeated. In these cases the rows of one batch row are next to each other. Other numbers are
refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deltakit.errors import IncompatibleDeltas

MAIN = (
    "input_ids",
    "inputs_embeds",
    "pixel_values",
    "input_features",
    "input_values",
    "decoder_input_ids",
    "decoder_inputs_embeds",
)
"""The arguments that have a row for each row of the batch."""


Choice = tuple[int | None, ...]
"""For each row the index of what it uses, or None."""


@dataclass(frozen=True, kw_only=True)
class RowCounts:
    """The numbers of rows in one pass.

    Attributes:
        entries: those of the active `PerRow`.
        given: the rows of the call.
        each: how many sequences one of them is (the choices of multiple choice).
        batch: the rows that `generate` was given, of which the call's are repetitions.
    """

    entries: int
    given: int
    each: int = 1
    batch: int | None = None

    def check(self) -> None:
        """Raises `IncompatibleDeltas` where the entries are not those of the call's rows."""
        one_each = self.entries == self.given
        repeated = self.batch is not None and (
            self.given % self.batch == 0 and self.entries % self.batch == 0
        )
        if not (one_each or repeated):
            rows = self.given if self.batch is None else self.batch
            raise IncompatibleDeltas(
                f"PerRow has entries for {self.entries} rows, but the batch has {rows}. Activate a "
                "PerRow with one entry for each row of this batch."
            )

    def fitted(self, choice: Choice, rows: int) -> Choice:
        """An entry for each of the rows that a module is given. Raises `IncompatibleDeltas`."""
        if rows not in (self.given, self.given * self.each):
            raise IncompatibleDeltas(
                f"PerRow has entries for {len(choice)} rows, but a module of the model is given "
                f"{rows}, and which of them belong to which row of the batch is not known. Run a "
                "batch for each delta."
            )
        return _repeated(_collapsed(choice, self.batch or self.given), rows)

    def whole(self) -> int:
        """The rows of a module that is given all sequences."""
        return self.given * self.each


def _repeated(choice: Choice, rows: int) -> Choice:
    times = max(rows // len(choice), 1)
    return tuple(each for each in choice for _ in range(times))


def _collapsed(choice: Choice, batch: int) -> Choice:
    """An entry for each row of the batch, where there is one for each repetition of it."""
    size = len(choice) // batch
    groups = [choice[start : start + size] for start in range(0, len(choice), max(size, 1))]
    if size < 2 or any(len(set(group)) > 1 for group in groups):
        return choice
    return tuple(group[0] for group in groups)


def fitted(choice: Choice, rows: int, counts: RowCounts | None) -> Choice:
    """An entry for each of the rows that a module is given, in a pass of such counts."""
    if rows == len(choice):
        return choice
    counts = counts or RowCounts(entries=len(choice), given=len(choice))
    found = counts.fitted(choice, rows)
    if len(found) != rows:
        raise IncompatibleDeltas(
            f"PerRow has different entries for the repetitions of one row, but a module is given "
            f"{rows} rows before they are repeated. Give one entry for each row of the batch."
        )
    return found


def count_rows(entries: int, args: Any, kwargs: Mapping[str, Any], batch: int | None) -> RowCounts:
    """The rows of a call, for a `PerRow` of so many entries. Raises `IncompatibleDeltas`.

    Args:
        entries: those of the `PerRow`.
        args: what the model is called with.
        kwargs: what it is called with by name.
        batch: the rows that the running call of `generate` was given.
    """
    first = _main(args, kwargs)
    choices = first.ndim == 3 and not first.is_floating_point()
    counts = RowCounts(
        entries=entries,
        given=first.shape[0],
        each=first.shape[1] if choices else 1,
        batch=batch,
    )
    counts.check()
    return counts


def _main(args: Any, kwargs: Mapping[str, Any]) -> Tensor:
    """What has a row for each row of the batch."""
    named = (kwargs.get(name) for name in MAIN)
    given = [each for each in (*args, *named, *kwargs.values()) if isinstance(each, Tensor)]
    return next(each for each in given if each.ndim > 0)
