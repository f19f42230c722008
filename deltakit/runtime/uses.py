"""The tables and tasks that one thread, or one task of an event loop, uses for itself.

They are kept in the context (`contextvars`), which tells threads and the tasks of an event loop
apart, and goes with `asyncio.to_thread`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, eq=False)
class Use:
    """The tables and tasks of the passes of one model.

    Attributes:
        owner: what the model runs by.
        tables: the tables; None leaves them as they are.
        tasks: the index of the task of all rows, or of each; None leaves them as they are.
    """

    owner: Any
    tables: Any = None
    tasks: tuple[int, ...] | None = None


Uses = tuple[Use, ...]
"""Uses inside one another, the innermost last."""

_CONTEXT: ContextVar[Uses] = ContextVar("deltakit_uses")


class _Here:
    """The calling context.

    torch cannot compile ``_CONTEXT.get()``. A property whose getter is not in Python it takes for
    a plain attribute, which it reads and guards in each call of compiled code.
    """

    uses: Any = property(_CONTEXT.get)
    """The context's uses; where it has none, the object itself: what `get` is given."""


_HERE = _Here()


def current_uses() -> Uses:
    """The uses of the passes that begin here."""
    found = _HERE.uses
    return () if found is _HERE else found


@contextmanager
def entered(use: Use) -> Iterator[None]:
    """Inside, the passes of this context begin with `use`. Others may be left in any order."""
    _CONTEXT.set((*current_uses(), use))
    try:
        yield
    finally:
        _CONTEXT.set(tuple(each for each in current_uses() if each is not use))
