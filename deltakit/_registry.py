"""A name -> thing table that refuses collisions and suggests near names."""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType
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
        """True if `thing` is the class at the target, or one of its instances."""
        module, name = home_of(thing)
        return f"{module}:{name}" == self.target


def home_of(thing: object) -> tuple[str, str]:
    """The module and the qualified name of a class or function, or of an instance's class."""
    named = thing if isinstance(thing, type | FunctionType) else type(thing)
    return named.__module__, named.__qualname__


def _itself(thing: object) -> object:
    return thing


class Registry(Generic[T]):
    """Things by name. Iterates in sorted order.

    A thing takes the place of an earlier one of its name if both were defined in ``__main__`` under
    one qualified name: a notebook's cell can be run again. Any other second thing is refused.

    Args:
        kind: what a name names, for messages.
        hint: one more sentence for the message of an unknown name.
        group: the entry-point group of plugins that add things, without ``deltakit.``. Its modules
            are imported when a name is not known yet, or when all names are asked for.
        shipped: packages of deltakit that register things when they are imported. They are imported
            as plugins are, and before them.
        source: gives the class or function that a thing was made of, where it is neither.
    """

    def __init__(
        self,
        kind: str,
        *,
        hint: str = "",
        group: str | None = None,
        shipped: tuple[str, ...] = (),
        source: Callable[[T], object] = _itself,
    ) -> None:
        self._kind = kind
        self._hint = hint
        self._group = group
        self._shipped = shipped
        self._source = source
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

    def register_instance(self, name: str, /, **fields: Any) -> Callable[[C], C]:
        """Class decorator: registers an instance of the class, made with `fields`.

        Raises:
            NameInUse: another thing has the name.
        """

        def decorate(cls: C) -> C:
            self.add(name, cls(**fields))
            return cls

        return decorate

    def check(self, name: str, thing: T) -> None:
        """Raises `NameInUse` if another thing has the name."""
        there = self._things.get(name, thing)
        if isinstance(there, LazyTarget):
            if there.names(thing):
                return
            there = self._loaded(name, there)
        if there != thing and not self._is_defined_again(there, thing):
            raise self._in_use(name, thing)

    def _is_defined_again(self, there: T, thing: T) -> bool:
        """True if a cell of a notebook, or a line of a session, has defined a thing once more."""
        home = home_of(self._source(thing))
        return home == home_of(self._source(there)) and home[0] == "__main__"

    def get(self, name: str) -> T:
        """The thing called `name`. Raises `UnknownName`, with suggestions."""
        self.check_known(name)
        thing = self._things[name]
        return self._loaded(name, thing) if isinstance(thing, LazyTarget) else thing

    def _loaded(self, name: str, lazy: LazyTarget) -> T:
        found = lazy.load()
        if self._things[name] is lazy:  # its module has not registered it
            self._things[name] = found
        thing = self._things[name]
        assert not isinstance(thing, LazyTarget)
        return thing

    def check_known(self, name: str) -> None:
        """Raises `UnknownName`, with suggestions, where there is no such thing. Loads nothing."""
        if name not in self:
            raise unknown(self._kind, name, self._things, hint=self._hint)

    def items(self) -> Iterator[tuple[str, T]]:
        """Every name with its thing, in sorted order."""
        return ((name, self.get(name)) for name in self)

    def remove(self, name: str) -> None:
        """Removes `name`. Raises `UnknownName`."""
        self.get(name)
        del self._things[name]

    def __contains__(self, name: str) -> bool:
        if name not in self._things:
            self._load_all()
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        self._load_all()
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def _load_all(self) -> None:
        for package in self._shipped:
            importlib.import_module(package)
        if self._group is not None:
            load_plugins(self._group)

    def _in_use(self, name: str, thing: object) -> NameInUse:
        return NameInUse(
            f"{self._kind} {name!r} is already {self._things[name]!r}; choose another name "
            f"for {thing!r}."
        )
