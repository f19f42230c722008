"""A name -> thing table that refuses collisions and suggests near names."""

from collections.abc import Iterator
from typing import Generic, TypeVar

from deltakit.errors import NameInUse, unknown

T = TypeVar("T")


class Registry(Generic[T]):
    """Things by name. Iterates in sorted order."""

    def __init__(self, kind: str, *, hint: str = "") -> None:
        self._kind = kind
        self._hint = hint
        self._things: dict[str, T] = {}

    def add(self, name: str, thing: T) -> None:
        """Registers `thing`. Raises `NameInUse` if another thing has the name."""
        self.check(name, thing)
        self._things[name] = thing

    def check(self, name: str, thing: T) -> None:
        """Raises `NameInUse` if another thing has the name."""
        if self._things.get(name, thing) != thing:
            raise NameInUse(
                f"{self._kind} {name!r} is already {self._things[name]!r}; choose another name "
                f"for {thing!r}."
            )

    def get(self, name: str) -> T:
        """The thing called `name`. Raises `UnknownName`, with suggestions."""
        if name not in self._things:
            raise unknown(self._kind, name, self._things, hint=self._hint)
        return self._things[name]

    def remove(self, name: str) -> None:
        """Forgets `name`. Raises `UnknownName`."""
        self.get(name)
        del self._things[name]

    def __contains__(self, name: str) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))
