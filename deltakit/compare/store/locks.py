"""Locks between workers: processes that share a run folder, on one machine or on several.

A lock belongs to a process and ends with it, however it ends. Its file stays where it is: removing
it while somebody else opens it would let two in.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from filelock import FileLock

T = TypeVar("T")

POLL = 0.1
"""Seconds between two looks at a lock that somebody else has."""


@dataclass(frozen=True)
class Lock:
    """What one worker at a time may do, as a file."""

    path: Path

    @contextlib.contextmanager
    def held(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Holds the lock, once whoever has it lets it go.

        Args:
            waiting: called once if somebody has it.
        """
        with self.offered() as mine:
            if mine:
                yield
                return
        if waiting is not None:
            waiting()
        with self._file().acquire(poll_interval=POLL):
            yield

    @contextlib.contextmanager
    def offered(self) -> Iterator[bool]:
        """Holds the lock if nobody has it, and says whether."""
        from filelock import Timeout

        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._file().acquire(blocking=False))
            except Timeout:
                yield False
            else:
                yield True

    def taken(self) -> bool:
        """Whether somebody has it just now."""
        with self.offered() as mine:
            return not mine

    def _file(self) -> "FileLock":
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path)


def free_first(items: Iterable[T], lock_of: Callable[[T], Lock]) -> Iterator[T]:
    """Every item once; one that somebody else works on comes when there is no other left."""
    left = list(items)
    while left:
        item = next((each for each in left if not lock_of(each).taken()), left[0])
        left.remove(item)
        yield item
