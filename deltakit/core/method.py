"""Methods and placements: where, which form, inserted how, composed how.

    method = [(site, functional form, insertion, composition), ...]       He et al. (2022), Table 1

A method is a frozen, keyword-only dataclass: its fields are what a user chooses, its class
variables are what defines it. It never sees a model: `deltakit.inject` resolves its placements.
"""

from __future__ import annotations

import dataclasses
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from deltakit._registry import Registry
from deltakit.core.renamed import old_keyword, old_name
from deltakit.core.site import Handle, Insertion, Site
from deltakit.core.steps import StepCallback
from deltakit.errors import IncompatibleDeltas, InvalidConfig, nearest

if TYPE_CHECKING:
    from torch import nn

    from deltakit.core.delta import Combiner, Delta


@dataclass(frozen=True, kw_only=True)
class Paper:
    """A method's source. `key` is its BibTeX key."""

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


@old_keyword("Placement", form="make_delta")
@dataclass(frozen=True, kw_only=True)
class Placement:
    """One row of He et al.'s table.

    Attributes:
        site: the representation that is modified, in every layer.
        make_delta: makes the functional form for a resolved site.
        insertion: what the form reads.
        scale: the s of h <- h + s Δh.
        optional: whether a model without this site is fine (it is an error otherwise).
        layers: the layers with this delta, of every stack; None for all.
        omitted: those of them without it.
        omitted_stacks: the stacks without this delta, by name.
        cross_attention: whether it is in the attention from a decoder to an encoder, too.
        drop_up_to: in training, each batch leaves the lowest n layers out, n drawn from 0 to this.
    """

    site: Site
    make_delta: Callable[[Handle], Delta]
    insertion: Insertion
    scale: float = 1.0
    optional: bool = False
    layers: frozenset[int] | None = None
    omitted: frozenset[int] = frozenset()
    omitted_stacks: frozenset[str] = frozenset()
    cross_attention: bool = True
    drop_up_to: int = 0


class Role(Enum):
    """The purpose of a row of a comparison."""

    METHOD = "method"
    FLOOR = "floor"
    """Trains nothing but the task head: what a delta must beat."""
    CEILING = "ceiling"
    """Trains everything: what a delta is measured against."""


class InitialOutput(IntEnum):
    """The output of a model to which a method has just been attached."""

    IDENTITY = 0
    """The base's output, bit for bit."""
    NEAR = 1
    """Nearly the base's output: the change is small and random."""
    ELSEWHERE = 2
    """Another output, until the method is trained."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):  # noqa: B024
    """A way of adapting a model.

    A method sets `paper` and `learning_rate`, and `starts` where that is not at the identity: as
    class variables, or as properties where they follow from its fields. Baselines set `role`.
    """

    role: ClassVar[Role] = Role.METHOD

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if inspect.isfunction(vars(cls).get("trains")):
            old_name(f"{cls.__name__}.trains", "trains_base_parameter")
            type.__setattr__(cls, "trains_base_parameter", vars(cls)["trains"])

    @property
    def paper(self) -> Paper:
        """The publication that the method comes from."""
        raise NotImplementedError(f"{type(self).__name__} names no `paper`.")

    @property
    def learning_rate(self) -> float:
        """The rate at which training starts unless the user sets one."""
        raise NotImplementedError(f"{type(self).__name__} names no `learning_rate`.")

    @property
    def starts(self) -> InitialOutput:
        """The output of a model to which the method has just been attached."""
        return InitialOutput.IDENTITY

    def placements(self) -> tuple[Placement, ...]:
        """The places of this method's new modules. None by default."""
        return ()

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        """True if the base's own parameter `name` (of the module `owner`) is trained too."""
        del name, owner
        return False

    def trains(self, name: str, owner: nn.Module) -> bool:
        """The old name of `trains_base_parameter`, renamed on 2026-11-26. It goes in 0.3."""
        old_name("Method.trains", "trains_base_parameter")
        return self.trains_base_parameter(name, owner)

    def check_names(self, names: Sequence[tuple[str, ...]]) -> None:
        """Checks that the base has the parameters that the method asks for.

        Args:
            names: of each parameter all its names, the principal one first; tied ones have several.

        Raises:
            InvalidConfig: it asks for one that is missing, or by some of its names only.
        """
        del names

    def callbacks(self) -> tuple[StepCallback, ...]:
        """Actions between training steps, such as a schedule of ranks or gates. None by default."""
        return ()

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
                raise IncompatibleDeltas(why_no_sum(self, other))
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
class Summable(Method):
    """A method whose deltas can be summed parameter by parameter (`deltakit.task_arithmetic`).

    A form that has another way of being summed says so itself (`CustomSum`). A method whose forms
    are all of that kind need not be `Summable`.
    """


@dataclass(frozen=True, kw_only=True)
class MethodWrapper(Method, ABC):
    """A method made of others, which it forwards every question to.

    A subclass says which methods it wraps, and overrides only what it changes. Each member of
    `Method` that a method can override is forwarded here.

    Attributes:
        sums_parts: whether a weighted sum of its deltas is made of those of its methods' deltas.
    """

    sums_parts: ClassVar[bool] = True

    @property
    @abstractmethod
    def wrapped(self) -> tuple[Method, ...]:
        """The methods that it is made of, one or more."""

    @abstractmethod
    def rewrapped(self, methods: tuple[Method, ...]) -> Method:
        """The same wrapper around other methods, one for each of `wrapped`."""

    @property
    def paper(self) -> Paper:
        """The first method's paper."""
        return self.wrapped[0].paper

    @property
    def learning_rate(self) -> float:
        """The smallest one, at which none of the methods diverges."""
        return min(method.learning_rate for method in self.wrapped)

    @property
    def starts(self) -> InitialOutput:
        """The one that is farthest from the base."""
        return max(method.starts for method in self.wrapped)

    def placements(self) -> tuple[Placement, ...]:
        return tuple(p for method in self.wrapped for p in method.placements())

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        return any(method.trains_base_parameter(name, owner) for method in self.wrapped)

    def check_names(self, names: Sequence[tuple[str, ...]]) -> None:
        for method in self.wrapped:
            method.check_names(names)

    def callbacks(self) -> tuple[StepCallback, ...]:
        return tuple(c for method in self.wrapped for c in method.callbacks())

    def deployed(self) -> Method:
        return self.rewrapped(tuple(method.deployed() for method in self.wrapped))

    def summed(self, others: Sequence[Method]) -> Method:
        for other in others:
            _check_kind(self, other)
        alike = [other for other in others if isinstance(other, MethodWrapper)]
        columns = zip(self.wrapped, *(other.wrapped for other in alike), strict=True)
        return self.rewrapped(tuple(first.summed(rest) for first, *rest in columns))

    def truncated(self, rank: int) -> Method:
        return self.rewrapped(tuple(method.truncated(rank) for method in self.wrapped))

    def sized(self, width: int) -> Method | None:
        """Every method that has a width has this one."""
        sized = tuple(method.sized(width) for method in self.wrapped)
        if not any(sized):
            return None
        return self.rewrapped(
            tuple(new or old for new, old in zip(sized, self.wrapped, strict=True))
        )


@dataclass(frozen=True, kw_only=True)
class FormWrapper(MethodWrapper, ABC):
    """One method with other forms at its placements, each made of the method's own.

    Its deltas have no weighted sum, because their parameters are not those of the method's forms.
    A subclass calls `check_method` when it is made.
    """

    method: Method

    sums_parts: ClassVar[bool] = False
    plain: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    """Settings that make it the method itself, bit for bit; empty where none do."""

    @property
    def wrapped(self) -> tuple[Method, ...]:
        return (self.method,)

    def rewrapped(self, methods: tuple[Method, ...]) -> Method:
        (method,) = methods
        return dataclasses.replace(self, method=method)

    @property
    def is_plain(self) -> bool:
        """True where its settings make it the method itself. False by default."""
        return False

    def placements(self) -> tuple[Placement, ...]:
        plain = super().placements()
        if self.is_plain:
            return plain
        return tuple(
            dataclasses.replace(each, make_delta=partial(self.form, each)) for each in plain
        )

    @abstractmethod
    def form(self, placement: Placement, handle: Handle) -> Delta:
        """The form at one site, made of the one that the method's `placement` makes."""

    def check_method(self) -> None:
        """Raises `InvalidConfig` unless the method puts deltas into layers."""
        if not isinstance(self.method, Method) or isinstance(self.method, CombiningMethod):
            raise InvalidConfig(
                f"{type(self).__name__}(method={self.method!r}): a method that puts deltas into "
                "layers, for example LoRA()."
            )


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
class Sum(MethodWrapper):
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
    def wrapped(self) -> tuple[Method, ...]:
        return self.parts

    def rewrapped(self, methods: tuple[Method, ...]) -> Method:
        return Sum(parts=methods)

    @property
    def paper(self) -> Paper:
        """The unified view, which is what allows sums."""
        return UNIFIED_VIEW


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


def can_be_summed(method: Method) -> bool:
    """True if the method's type declares that its deltas have a weighted sum."""
    if isinstance(method, MethodWrapper):
        return method.sums_parts and all(map(can_be_summed, method.wrapped))
    return isinstance(method, Summable) or type(method).summed is not Method.summed


def summable_names() -> list[str]:
    """The names of the registered classes of methods whose deltas have a weighted sum."""
    return [name for name in CLASSES if issubclass(CLASSES.get(name), Summable)]


def _check_kind(one: Method, other: Method) -> None:
    if _kind(one) != _kind(other):
        raise IncompatibleDeltas(
            f"{_kind(one)} and {_kind(other)} have no weighted sum: take deltas of one kind."
        )


def why_no_sum(one: Method, other: Method) -> str:
    """The setting in which two methods of one kind differ, as a message."""
    _check_kind(one, other)
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
    """A short name's meaning: a method's class, and some of its fields.

    Attributes:
        cls: the class.
        preset: the fields that the name sets.
        about: what the fields make of the class, on one line; "" where they set nothing.
    """

    cls: type[Method]
    preset: tuple[tuple[str, Any], ...]
    about: str = ""

    @property
    def summary(self) -> str:
        """The name's meaning on one line."""
        return self.about or (inspect.getdoc(self.cls) or "").partition("\n")[0]

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


SHIPPED = ("deltakit.methods", "deltakit.interop")
"""The packages that register methods, by name: nothing in this room may import them."""

METHODS: Registry[Entry] = Registry(
    "method",
    hint="`deltakit methods` describes them.",
    group="methods",
    shipped=SHIPPED,
    source=lambda entry: entry.cls,
)
CLASSES: Registry[type[Method]] = Registry("method class", group="methods", shipped=SHIPPED)
CLASSES.add("Sum", Sum)

M = TypeVar("M", bound=type[Method])


def register_method(name: str, about: str = "", /, **preset: Any) -> Callable[[M], M]:
    """Class decorator: makes a method known by a short name, and readable from saved files.

    Args:
        name: what users type, for example in ``--methods``.
        about: a line for ``deltakit list methods``, where the first line of the class says less
            than the preset does.
        preset: fields that this name sets; one class may have several names.

    Raises:
        NameInUse: another method has the name.
    """

    def decorate(cls: M) -> M:
        CLASSES.check(cls.__name__, cls)
        METHODS.add(name, Entry(cls, tuple(preset.items()), about))
        CLASSES.add(cls.__name__, cls)
        return cls

    return decorate


def know_classes(method: Method) -> None:
    """Lets files with this method be read: its class, and those of methods in it, have their names.

    A class that a notebook defines again takes the place of the earlier one.

    Raises:
        NameInUse: another class has the name.
    """
    CLASSES.add(type(method).__name__, type(method))
    for field in dataclasses.fields(method):
        value = getattr(method, field.name)
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, Method):
                know_classes(each)


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
