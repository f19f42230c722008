"""A name -> thing table that refuses collisions and suggests near names."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deltakit._plugins import load_plugins
from deltakit.errors import InvalidConfig, NameInUse, unknown

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])


@dataclass(frozen=True)
class LazyTarget:
    """A thing in a module that is imported on first use, written ``module:name``."""

    target: str

    def load(self) -> Any:
        """The thing. Importing its module may register it too."""
        module, _, name = self.target.partition(":")
        return getattr(importlib.import_module(module), name)

    def names(self, thing: object) -> bool:
        """True if `thing` is the class at the target, which may not be whole yet."""
        return isinstance(thing, type) and f"{thing.__module__}:{thing.__qualname__}" == self.target


class Registry(Generic[T]):
    """Things by name. Iterates in sorted order.

    Args:
        kind: what a name names, for messages.
        hint: one more sentence for the message of an unknown name.
        group: the entry-point group of plugins that add things, without ``deltakit.``. Its modules
            are imported when a name is not known yet, or when all names are asked for.
    """

    def __init__(self, kind: str, *, hint: str = "", group: str | None = None) -> None:
        self._kind = kind
        self._hint = hint
        self._group = group
        self._things: dict[str, T | LazyTarget] = {}

    def add(self, name: str, thing: T) -> None:
        """Registers `thing`. Raises `NameInUse` if another thing has the name."""
        self.check(name, thing)
        self._things[name] = thing

    def add_lazy(self, name: str, target: str) -> None:
        """Registers the thing at `target`, which is imported on first use.

        Args:
            name: its name.
            target: ``module:name``.

        Raises:
            NameInUse: another thing has the name.
        """
        lazy = LazyTarget(target)
        if self._things.get(name, lazy) != lazy:
            raise self._in_use(name, target)
        self._things[name] = lazy

    def register(self, name: str) -> Callable[[C], C]:
        """Class decorator: registers the class, and makes `name` its attribute `name`.

        Raises:
            InvalidConfig: the decorator is used without a name.
            NameInUse: another thing has the name.
        """
        if not isinstance(name, str):
            raise InvalidConfig(
                f"the decorator of a {self._kind} takes its name in brackets, as in "
                f'@register_{self._kind}("mine").'
            )

        def decorate(cls: C) -> C:
            thing: Any = cls
            self.check(name, thing)
            thing.name = name
            self.add(name, thing)
            return cls

        return decorate

    def check(self, name: str, thing: T) -> None:
        """Raises `NameInUse` if another thing has the name."""
        there = self._things.get(name, thing)
        if isinstance(there, LazyTarget):
            there = thing if there.names(thing) else there.load()
        if there != thing:
            raise self._in_use(name, thing)

    def get(self, name: str) -> T:
        """The thing called `name`. Raises `UnknownName`, with suggestions."""
        if name not in self:
            raise unknown(self._kind, name, self._things, hint=self._hint)
        thing = self._things[name]
        if isinstance(thing, LazyTarget):
            thing = self._things[name] = thing.load()
        return thing

    def items(self) -> Iterator[tuple[str, T]]:
        """Every name with its thing, in sorted order."""
        return ((name, self.get(name)) for name in self)

    def remove(self, name: str) -> None:
        """Removes `name`. Raises `UnknownName`."""
        self.get(name)
        del self._things[name]

    def __contains__(self, name: str) -> bool:
        if name not in self._things:
            self._load_plugins()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        self._load_plugins()
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _load_plugins(self) -> None:
        if self._group is not None:
            load_plugins(self._group)

    def _in_use(self, name: str, thing: object) -> NameInUse:
        return NameInUse(
            f"{self._kind} {name!r} is already {self._things[name]!r}; choose another name "
            f"for {thing!r}."
        )
