"""Locks between workers: processes that share a run folder, on one machine or on several.

A lock belongs to a process and ends with it, even if the process is killed. Its file is not
removed: a process that opens the file at that moment would hold a second lock.
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
"""Seconds between two attempts at a lock that another worker holds."""


@dataclass(frozen=True)
class Lock:
    """A lock that one worker at a time holds, as a file."""

    path: Path

    @contextlib.contextmanager
    def held(self, waiting: Callable[[], None] | None = None) -> Iterator[None]:
        """Holds the lock, after waiting until it is free.

        Args:
            waiting: called once if another worker holds it.
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
        """Holds the lock if it is free, and yields true if so."""
        from filelock import Timeout

        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self._file().acquire(blocking=False))
            except Timeout:
                yield False
            else:
                yield True

    def taken(self) -> bool:
        """True if the lock is held at the moment."""
        with self.offered() as mine:
            return not mine

    def _file(self) -> "FileLock":
        from filelock import FileLock

        self.path.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path)


def free_first(items: Iterable[T], lock_of: Callable[[T], Lock]) -> Iterator[T]:
    """Every item once, those that another worker holds last."""
    left = list(items)
    while left:
        item = next((each for each in left if not lock_of(each).taken()), left[0])
        left.remove(item)
        yield item
