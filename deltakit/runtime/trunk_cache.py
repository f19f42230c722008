"""Kept hidden states of a frozen trunk, row by row, within a limit of memory.

A *trunk* is what a model computes below its lowest active delta. Its values are those of one set of
weights, one layer and one set of modes, so each such trunk has rows of its own.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from deltakit.core.memory_size import format_size, parse_size


class TrunkCache:
    """Hidden states that enter a layer, by what each row was made from.

    Rows are kept until the limit is reached. Those of a trunk that is no longer used make room.

    Args:
        limit: bytes, or an amount such as ``"512 MB"``.

    Attributes:
        limit: bytes.
        begun: passes that began at the kept states.
        begun_in_training: those of them in training mode.
        computed: passes that computed the trunk and could be kept.
        refused: the reasons of all other passes, with their numbers.
        left_out: rows that had no room.

    Raises:
        InvalidConfig: the limit is not an amount of memory.
    """

    def __init__(self, limit: str | int = "512 MB") -> None:
        self.limit = parse_size("limit", limit)
        self.begun = 0
        self.begun_in_training = 0
        self.computed = 0
        self.refused: Counter[str] = Counter()
        self.left_out = 0
        self._size = 0
        self._trunks: dict[bytes, dict[bytes, Tensor]] = {}
        self._used: set[bytes] = set()

    def begin(self) -> None:
        """From now on, trunks that are not used again make room for those that are."""
        self._used.clear()

    @property
    def rows(self) -> int:
        """The number of kept rows."""
        return sum(map(len, self._trunks.values()))

    @property
    def size(self) -> int:
        """The bytes of the kept rows."""
        return self._size

    def clear(self) -> None:
        """Lets all rows go. The counts stay."""
        self._trunks.clear()
        self._size = 0

    def find(self, trunk: bytes, keys: Iterable[bytes]) -> list[Tensor] | None:
        """The rows of a batch; None unless all are kept."""
        self._used.add(trunk)
        rows = self._trunks.get(trunk, {})
        found = [rows.get(key) for key in keys]
        kept = [row for row in found if row is not None]
        return kept if len(kept) == len(found) else None

    def missing(self, trunk: bytes, keys: Sequence[bytes]) -> list[int]:
        """The places in a batch of the rows that are not kept, each row once."""
        rows = self._trunks.get(trunk, {})
        places = {key: place for place, key in reversed([*enumerate(keys)]) if key not in rows}
        return sorted(places.values())

    def keep(self, trunk: bytes, rows: Iterable[tuple[bytes, Tensor]]) -> None:
        """Keeps copies of rows as far as there is room."""
        self._used.add(trunk)
        kept = self._trunks.setdefault(trunk, {})
        with torch.inference_mode(False):  # a row may be of a pass that is evaluated
            for key, row in rows:
                self._keep_row(kept, key, row)

    def _keep_row(self, kept: dict[bytes, Tensor], key: bytes, row: Tensor) -> None:
        size = _size(row)
        self._make_room(size)
        if self._size + size > self.limit:
            self.left_out += 1
        else:
            kept[key] = row.clone()
            self._size += size

    def _make_room(self, size: int) -> None:
        """Lets trunks go that are not used any more, the oldest first."""
        unused = (trunk for trunk in [*self._trunks] if trunk not in self._used)
        while self._size + size > self.limit and (trunk := next(unused, None)) is not None:
            rows = self._trunks.pop(trunk)
            self._size -= sum(map(_size, rows.values()))

    def __str__(self) -> str:
        return "; ".join(self._parts()) + "."

    def _parts(self) -> Iterator[str]:
        passes = self.begun + self.computed
        yield f"{self.rows:,} rows, {format_size(self._size)} of {format_size(self.limit)}"
        yield f"{self.begun:,} of {passes:,} passes began at kept states"
        if self.left_out:
            yield f"{self.left_out:,} times a row had no room"
        for reason, count in self.refused.items():
            yield f"{count:,} passes computed as without it ({reason})"


def _size(row: Tensor) -> int:
    return row.numel() * row.element_size()
