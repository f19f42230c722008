"""A method is a list of placements; a placement says where, which form, inserted how, composed how.

    method = [(site, functional form, insertion, composition), ...]       He et al. (2022), Table 1

A method is a frozen, keyword-only dataclass: its fields are what a user chooses, its class
variables are what defines it. It never sees a model: `deltakit.inject` resolves its placements.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any, ClassVar, TypeVar

from torch import nn

from deltakit._registry import Registry
from deltakit.core.delta import Combiner, Delta
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import IncompatibleDeltas, InvalidConfig, nearest


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a method comes from. `key` is its BibTeX key."""

    key: str
    title: str
    authors: str
    year: int
    venue: str
    arxiv: str | None = None

    def bibtex(self) -> str:
        """The entry, ready to paste."""
        fields = {"title": self.title, "author": self.authors, "year": str(self.year)}
        fields["booktitle"] = self.venue
        if self.arxiv is not None:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv"}
        body = ",\n".join(f"  {key} = {{{value}}}" for key, value in fields.items())
        return f"@inproceedings{{{self.key},\n{body}\n}}"


@dataclass(frozen=True, kw_only=True)
class Placement:
    """One row of He et al.'s table.

    Attributes:
        site: which representation is modified, in every layer.
        form: makes the functional form for a resolved site.
        insertion: what the form reads.
        scale: the s of h <- h + s Δh.
        optional: whether a model without this site is fine (it is an error otherwise).
        omitted: the layers that go without, of every stack.
        drop_up_to: in training, each batch leaves the lowest n layers out, n drawn from 0 to this.
    """

    site: Site
    make_delta: Callable[[Handle], Delta]
    insertion: Insertion
    scale: float = 1.0
    optional: bool = False
    omitted: frozenset[int] = frozenset()
    drop_up_to: int = 0


class Role(Enum):
    """What a row of a comparison is for."""

    METHOD = "method"
    FLOOR = "floor"
    """Trains nothing but the task head: what a delta must beat."""
    CEILING = "ceiling"
    """Trains everything: what a delta is measured against."""


class InitialOutput(IntEnum):
    """What a model computes when a method has just been attached to it."""

    IDENTITY = 0
    """What it did before, bit for bit."""
    NEAR = 1
    """Nearly what it did before: the change is small and random."""
    ELSEWHERE = 2
    """Something else, until it is trained."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way of adapting a model.

    Class variables that a method sets: `paper`, `learning_rate` (where training starts when nobody
    says otherwise; the comparison can search it), `starts` where that is not at the identity and,
    for baselines, `role`.
    """

    paper: ClassVar[Paper]
    learning_rate: ClassVar[float]
    role: ClassVar[Role] = Role.METHOD
    starts: ClassVar[InitialOutput] = InitialOutput.IDENTITY

    def placements(self) -> tuple[Placement, ...]:
        """Where this method puts new modules. None by default."""
        return ()

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        """Whether the base's own parameter `name` (of the module `owner`) is trained too."""
        del name, owner
        return False

    def check_names(self, names: Sequence[tuple[str, ...]]) -> None:
        """Checks that the base's parameters are those that the method asks for.

        Args:
            names: of each parameter all its names, first the one that it goes by; tied ones have
                several.

        Raises:
            InvalidConfig: it asks for one that is not there, or by some of its names only.
        """
        del names

    def deployed(self) -> Method:
        """The method as it is when training is over: without what only training needs."""
        return self

    def summed(self, others: Sequence[Method]) -> Method:
        """The method of a weighted sum of deltas of this method and of `others`.

        By default all of them must be equal, and so is the sum.

        Raises:
            IncompatibleDeltas: deltas of these methods cannot be summed.
        """
        for other in others:
            if other != self:
                raise IncompatibleDeltas(_why_no_sum(self, other))
        return self

    def truncated(self, rank: int) -> Method:
        """The method with its low-rank products cut down to `rank`; without any, as it is."""
        del rank
        return self

    def sized(self, width: int) -> Method | None:
        """The method with another inner width (a rank, a bottleneck); None where it has none.

        The number of trained parameters grows with the width.
        """
        del width
        return None

    def __add__(self, other: Method) -> Sum:
        """Both methods at once (this is how MAM is made)."""
        if not isinstance(other, Method):
            return NotImplemented
        return Sum(parts=(*_parts(self), *_parts(other)))


@dataclass(frozen=True, kw_only=True)
class CombiningMethod(Method, ABC):
    """A method over deltas that are attached already: it composes their changes at each site.

    The members stay frozen; only the combiners are trained.
    """

    names: tuple[str, ...]
    member: Method
    """What a comparison's first stage trains, once for each source task."""

    @abstractmethod
    def combiner(self, handle: Handle, members: tuple[str, ...]) -> Combiner:
        """The module that makes the changes of the deltas named `members` at `handle` into one."""


@dataclass(frozen=True, kw_only=True)
class Sum(Method):
    """Several methods at once: all their placements, each reading the unchanged signal."""

    parts: tuple[Method, ...]

    def __post_init__(self) -> None:
        for part in self.parts:
            if isinstance(part, CombiningMethod):
                raise IncompatibleDeltas(
                    f"{type(part).__name__} composes deltas that are attached already, so it is "
                    "not a term of a sum. Attach it under a name of its own."
                )

    @property
    def learning_rate(self) -> float:  # type: ignore[override]
        """The smallest of the parts': what none of them diverges at."""
        return min(part.learning_rate for part in self.parts)

    @property
    def starts(self) -> InitialOutput:  # type: ignore[override]
        """As far away as the farthest of the parts."""
        return max(part.starts for part in self.parts)

    @property
    def paper(self) -> Paper:  # type: ignore[override]
        """The unified view, which is what allows sums."""
        return UNIFIED_VIEW

    def placements(self) -> tuple[Placement, ...]:
        return tuple(p for part in self.parts for p in part.placements())

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        return any(part.trains_base_parameter(name, owner) for part in self.parts)

    def check_names(self, names: Sequence[tuple[str, ...]]) -> None:
        for part in self.parts:
            part.check_names(names)

    def deployed(self) -> Method:
        return Sum(parts=tuple(part.deployed() for part in self.parts))

    def summed(self, others: Sequence[Method]) -> Method:
        for other in others:
            if _kind(other) != _kind(self):
                raise IncompatibleDeltas(_why_no_sum(self, other))
        columns = zip(self.parts, *map(_parts, others), strict=True)
        return Sum(parts=tuple(first.summed(rest) for first, *rest in columns))

    def truncated(self, rank: int) -> Method:
        return Sum(parts=tuple(part.truncated(rank) for part in self.parts))

    def sized(self, width: int) -> Method | None:
        """Every part that has a width has this one."""
        sized = tuple(part.sized(width) for part in self.parts)
        if not any(sized):
            return None
        return Sum(parts=tuple(new or old for new, old in zip(sized, self.parts, strict=True)))


UNIFIED_VIEW = Paper(
    key="he2022unified",
    title="Towards a Unified View of Parameter-Efficient Transfer Learning",
    authors="He, Junxian and Zhou, Chunting and Ma, Xuezhe and Berg-Kirkpatrick, Taylor and "
    "Neubig, Graham",
    year=2022,
    venue="International Conference on Learning Representations",
    arxiv="2110.04366",
)


def _parts(method: Method) -> tuple[Method, ...]:
    return method.parts if isinstance(method, Sum) else (method,)


def _why_no_sum(one: Method, other: Method) -> str:
    if _kind(one) != _kind(other):
        return f"{_kind(one)} and {_kind(other)} have no weighted sum: take deltas of one kind."
    fields = [f.name for f in dataclasses.fields(one)]
    name = next((n for n in fields if getattr(one, n) != getattr(other, n)), "")
    return (
        f"these {_kind(one)} deltas have no weighted sum: {name} is {getattr(one, name)!r} in one, "
        f"{getattr(other, name)!r} in another. Take deltas of one setting."
    )


def _kind(method: Method) -> str:
    return "+".join(type(part).__name__ for part in _parts(method))


# ------------------------------------------------------------------------------- the registry


@dataclass(frozen=True)
class Entry:
    """A short name: a method's class, and the fields that the name stands for."""

    cls: type[Method]
    preset: tuple[tuple[str, Any], ...]

    def build(self, **fields: Any) -> Method:
        """The method, with `fields` over the preset. Raises `InvalidConfig`."""
        known = {field.name for field in dataclasses.fields(self.cls)}
        for key in fields:
            if key not in known:
                raise InvalidConfig(
                    f"{self.cls.__name__} has no setting {key!r}.{nearest(key, known)} It has: "
                    f"{', '.join(sorted(known)) or 'none'}."
                )
        return self.cls(**{**dict(self.preset), **fields})


METHODS: Registry[Entry] = Registry("method", hint="`deltakit methods` describes them.")
CLASSES: Registry[type[Method]] = Registry("method class")
CLASSES.add("Sum", Sum)

M = TypeVar("M", bound=type[Method])


def register_method(name: str, **preset: Any) -> Callable[[M], M]:
    """Class decorator: makes a method known by a short name, and readable from saved files.

    Args:
        name: what users type, for example in ``--methods``.
        preset: fields that this name sets; one class may have several names.

    Raises:
        NameInUse: another method has the name.
    """

    def decorate(cls: M) -> M:
        CLASSES.check(cls.__name__, cls)
        METHODS.add(name, Entry(cls, tuple(preset.items())))
        CLASSES.add(cls.__name__, cls)
        return cls

    return decorate


def method_to_dict(method: Method) -> dict[str, Any]:
    """The method as plain data: its class name under "class", and all its fields."""
    fields = {f.name: _plain(getattr(method, f.name)) for f in dataclasses.fields(method)}
    return {"class": type(method).__name__, **fields}


def method_from_dict(data: dict[str, Any]) -> Method:
    """The inverse of `method_to_dict`.

    Raises:
        UnknownName: no method has the class name.
        InvalidConfig: a field that the method does not have, or a value that it does not take.
    """
    fields = dict(data)
    if "class" not in fields:
        raise InvalidConfig(f"a method needs its class name under 'class'; got {data!r}.")
    cls = CLASSES.get(fields.pop("class"))
    return Entry(cls, ()).build(**{key: _rich(value) for key, value in fields.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, Method):
        return method_to_dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _rich(value: Any) -> Any:
    if isinstance(value, dict):
        return method_from_dict(value)
    if isinstance(value, list):
        return tuple(_rich(item) for item in value)
    return value
