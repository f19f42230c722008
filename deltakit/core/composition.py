"""Composition as users write it: a small algebra over the *names* of attached deltas.

::

    Stack("lang", "task")                       one on top of the other
    Mean("a", "b", weights=[0.7, 0.3])          a weighted sum of changes
    Stack("lang", Mean("a", "b"))               nested
    PerRow(["a", None, Stack("lang", "b")])     for each row of a batch another one, or none

While the model runs, `deltakit.runtime.compile` makes one node of it at each site.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltakit.errors import InvalidConfig


@dataclass(frozen=True)
class Composition(ABC):
    """Attached deltas, and how they act together. Build one with its subclasses."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The deltas that it names, each once."""

    @abstractmethod
    def to_plain(self) -> Any:
        """The composition as plain data, for `composition_from_plain`."""


@dataclass(frozen=True)
class One(Composition):
    """A single delta by its name. `activate(model, "a")` means ``One("a")``."""

    name: str

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def to_plain(self) -> Any:
        return self.name


@dataclass(frozen=True, init=False)
class Stack(Composition):
    """Deltas one on top of the other, the first one first (MAD-X: ``Stack("lang", "task")``).

    At a linear's site, where LoRA reads x and not h, the changes add up. Prefixes follow
    one another.
    """

    parts: tuple[Composition, ...]

    def __init__(self, *parts: str | Composition) -> None:
        object.__setattr__(self, "parts", _parts("Stack", parts))

    @property
    def names(self) -> tuple[str, ...]:
        return _names(self.parts)

    def to_plain(self) -> Any:
        return {"stack": [part.to_plain() for part in self.parts]}


@dataclass(frozen=True, init=False)
class Mean(Composition):
    """The weighted sum of the deltas' changes; equal weights that add to one by default.

    Args:
        parts: names of attached deltas, or compositions of them.
        weights: one for each part; taken as they are, not normalised.
    """

    parts: tuple[Composition, ...]
    weights: tuple[float, ...]

    def __init__(self, *parts: str | Composition, weights: Sequence[float] | None = None) -> None:
        own = _parts("Mean", parts)
        given = tuple(weights) if weights is not None else (1.0 / len(own),) * len(own)
        if len(given) != len(own):
            raise InvalidConfig(
                f"Mean has {len(own)} deltas ({', '.join(map(_shown, own))}) and {len(given)} "
                "weights. Give one weight for each delta."
            )
        object.__setattr__(self, "parts", own)
        object.__setattr__(self, "weights", given)

    @property
    def names(self) -> tuple[str, ...]:
        return _names(self.parts)

    def to_plain(self) -> Any:
        return {"mean": [p.to_plain() for p in self.parts], "weights": list(self.weights)}


@dataclass(frozen=True, init=False)
class PerRow(Composition):
    """For each row of a batch its own delta or composition, or None for the plain base.

    Rows whose deltas are of one kind are computed together, as grouped matrix products. Each row
    uses the task head of its own delta; heads are used here, not trained.

    Args:
        rows: one for each row. A batch of another size is an error.
    """

    rows: tuple[Composition | None, ...]

    def __init__(self, rows: Sequence[str | Composition | None]) -> None:
        if isinstance(rows, str):
            raise InvalidConfig(f"PerRow({rows!r}): give a list with one entry for each row.")
        own = tuple(None if row is None else _part("PerRow", row) for row in rows)
        if not own:
            raise InvalidConfig(
                "PerRow needs an entry for each row of the batch, and got none. Give a name, a "
                "composition or None for each."
            )
        object.__setattr__(self, "rows", own)

    @property
    def names(self) -> tuple[str, ...]:
        return _names(tuple(row for row in self.rows if row is not None))

    def to_plain(self) -> Any:
        return {"per_row": [None if row is None else row.to_plain() for row in self.rows]}


def composition_from_plain(data: Any) -> Composition:
    """The inverse of `Composition.to_plain`. Raises `InvalidConfig`."""
    match data:
        case str():
            return One(data)
        case {"stack": [*parts], **rest} if not rest:
            return Stack(*map(composition_from_plain, parts))
        case {"mean": [*parts], "weights": [*weights], **rest} if not rest:
            return Mean(*map(composition_from_plain, parts), weights=weights)
        case {"per_row": [*rows], **rest} if not rest:
            return PerRow([None if row is None else composition_from_plain(row) for row in rows])
        case _:
            raise InvalidConfig(
                f"{data!r} describes no composition. Give one of stack, mean and per_row."
            )


def _parts(kind: str, given: tuple[str | Composition, ...]) -> tuple[Composition, ...]:
    if not given:
        raise InvalidConfig(f"{kind} needs at least one name of an attached delta.")
    parts = tuple(_part(kind, part) for part in given)
    if len(set(parts)) != len(parts):
        raise InvalidConfig(f"{kind} names a delta twice: {', '.join(map(_shown, parts))}.")
    return parts


def _part(kind: str, part: str | Composition) -> Composition:
    match part:
        case str():
            return One(part)
        case PerRow():
            raise InvalidConfig(
                f"PerRow inside {kind}: it says what each row of the batch runs with, so it is "
                "the outermost, as in PerRow([Stack('a', 'b'), None])."
            )
        case Composition():
            return part
        case _:
            raise InvalidConfig(
                f"{kind} is of names of attached deltas and compositions of them; got {part!r}."
            )


def _names(parts: tuple[Composition, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for part in parts for name in part.names))


def _shown(part: Composition) -> str:
    return part.name if isinstance(part, One) else repr(part)
