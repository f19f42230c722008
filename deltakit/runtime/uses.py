"""The tables and tasks that one thread, or one task of an event loop, uses for itself.

They are kept in the thread, where compiled code reads them, and in the context (`contextvars`),
which tells the tasks of an event loop apart and goes with `asyncio.to_thread`. A pass that is not
compiled goes by its context.
"""

import threading
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


class _Thread(threading.local):
    """The uses of one thread, and those of the context of the pass that begins in it."""

    def __init__(self) -> None:
        self.uses: Uses = ()
        self.of_context: Uses | None = None


_HERE = _Thread()
_CONTEXT: ContextVar[Uses] = ContextVar("deltakit_uses", default=())


@contextmanager
def entered(use: Use) -> Iterator[None]:
    """Inside, the passes of this context begin with `use`. Others may be left in any order."""
    _HERE.uses = (*_HERE.uses, use)
    _CONTEXT.set((*_CONTEXT.get(), use))
    try:
        yield
    finally:
        _HERE.uses = _without(_HERE.uses, use)
        _CONTEXT.set(_without(_CONTEXT.get(), use))


def _without(uses: Uses, use: Use) -> Uses:
    return tuple(each for each in uses if each is not use)


def note_context() -> None:
    """Lets the pass that begins go by its context. Compiled code cannot read it."""
    _HERE.of_context = _CONTEXT.get()


def forget_context() -> None:
    """Ends what `note_context` has begun."""
    _HERE.of_context = None


def current_uses() -> Uses:
    """The uses of the passes that begin here."""
    found = _HERE.of_context
    return _HERE.uses if found is None else found


def has_other_tasks() -> bool:
    """True if another task of this thread's event loop is inside a use."""
    return any(use not in _CONTEXT.get() for use in _HERE.uses)
