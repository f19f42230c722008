"""Old names of what was renamed on 2026-11-26. They go in 0.3."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def old_name(old: str, new: str) -> None:
    """Warns that the caller's caller uses a name that was renamed."""
    warnings.warn(
        f"{old} was renamed {new} on 2026-11-26; the old name goes in 0.3.",
        DeprecationWarning,
        stacklevel=3,
    )


def old_keyword(owner: str, **renamed: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: fields are accepted and read by their old names too, with a warning.

    Args:
        owner: the class's name in the warning.
        renamed: the new name of each old one.
    """

    def decorate(cls: type[T]) -> type[T]:
        constructor: Callable[..., None] = vars(cls)["__init__"]

        @functools.wraps(constructor)
        def init(self: T, *args: Any, **fields: Any) -> None:
            for old in renamed.keys() & fields.keys():
                old_name(f"{owner}({old}=)", f"{renamed[old]}=")
                fields[renamed[old]] = fields.pop(old)
            constructor(self, *args, **fields)

        type.__setattr__(cls, "__init__", init)
        for old, new in renamed.items():
            type.__setattr__(cls, old, _Renamed(owner, old, new))
        return cls

    return decorate


class _Renamed:
    """An attribute that is read by its old name."""

    def __init__(self, owner: str, old: str, new: str) -> None:
        self.names = owner, old, new

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        name, old, new = self.names
        old_name(f"{name}.{old}", new)
        return getattr(instance, new)
