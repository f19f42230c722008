"""Methods that another library puts on a model: rows of a comparison, and nothing else here.

A comparison trains, runs, counts and stores what it compares through `AdaptedModel` alone, so a
library joins with one class of methods and one of adapted models. Nothing
above this file names the library.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from deltakit._registry import LazyTarget, Registry
from deltakit.core.method import CLASSES, Entry, Method, Placement
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Numbers of parameters, and the bytes of the base: columns of ``results.csv``."""

    trained_params: int
    trained_pct: float
    deployed_params: int
    head_params: int
    base_bytes: int


class AdaptedModel(ABC):
    """A model with one method on it, as a comparison needs it.

    Attributes:
        model: what is trained and run: called with a batch, it returns `loss` and `logits`.
        notes: sentences for the run's report.
    """

    def __init__(self, model: Any) -> None:
        self.model: Any = model
        self.notes: tuple[str, ...] = ()

    @abstractmethod
    def attach(self) -> None:
        """Puts the method on the model, ready to be trained: it and the task head, nothing else.

        Raises:
            DeltakitError: the method does not fit the model. The model may be on the meta device.
        """

    def prepare(self, batches: Iterable[Mapping[str, Any]]) -> None:
        """Takes from data what the method starts from, once, before the first step.

        By default nothing. `model` may be another object afterwards.

        Args:
            batches: of the training data, with labels; as many are read as the method needs.

        Raises:
            DeltakitError: the start cannot be taken.
        """
        del batches

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Writes what was trained. The ``*.safetensors`` right in `folder` are what it weighs."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """In place of `attach`: the method as `save` wrote it, ready to be trained or run."""

    @abstractmethod
    def counts(self) -> Counts:
        """The numbers of trained and of kept parameters. Works on the meta device."""

    @abstractmethod
    def deploy(self) -> bool:
        """Gives up what only training needs. Returns whether `save` writes less now."""

    @abstractmethod
    def disabled(self) -> AbstractContextManager[nn.Module]:
        """Inside, the base as it was before; gives what to call."""

    @abstractmethod
    def merged(self) -> AbstractContextManager[nn.Module]:
        """Inside, the method is folded into the base's weights; gives what to call.

        Raises:
            NotMergeable: it cannot be folded in, and taken out again.
        """

    @abstractmethod
    def second_copy(self, folder: Path) -> AbstractContextManager[Callable[[], None]]:
        """Inside, the method as `save` wrote it is on the model a second time, and is active.

        Gives what makes the other of the two the active one. In the end the first one is.
        """

    def kept_trunk(self, cache: Any) -> AbstractContextManager[Any]:
        """Inside, frozen layers below the method may be computed once for each row.

        By default nothing is kept.

        Args:
            cache: where their hidden states are kept, a `deltakit.TrunkCache`.
        """
        return nullcontext(cache)

    def callbacks(self) -> tuple[Any, ...]:
        """The callbacks that transformers' Trainer must call while it trains the model."""
        return ()


@dataclass(frozen=True, kw_only=True)
class ExternalMethod(Method, ABC):
    """A method of another library, by its name there and the settings that differ from its own.

    Class variables: `provider`, the word before the colon in a spec, which `register_provider`
    sets; `adapted_by`, the class of its adapted models as ``module:name``, which takes a model and
    a method and is imported on first use; and `usage`, a line for those who ask what can be
    compared.
    """

    name: str
    settings: tuple[tuple[str, Any], ...] = ()

    provider: ClassVar[str]
    adapted_by: ClassVar[str]
    usage: ClassVar[str]

    def adapted(self, model: Any) -> AdaptedModel:
        """The model with this method, which is not put on it yet."""
        made: AdaptedModel = LazyTarget(self.adapted_by).load()(model, self)
        return made

    def added_positions(self) -> int:
        """The number of places in a table of positions that it takes from the text."""
        return 0

    def placements(self) -> tuple[Placement, ...]:
        """Refuses: the library has placements of its own, which deltakit's hooks do not make.

        Raises:
            InvalidConfig: always.
        """
        raise InvalidConfig(
            f"{self.provider}:{self.name} is put on a model by {self.provider}, not by deltakit: "
            "it can be a row of a comparison, but neither be attached nor be part of another "
            "method. Give it to `deltakit compare --methods` by itself."
        )


PROVIDERS: Registry[type[ExternalMethod]] = Registry(
    "provider",
    hint="Write provider:name[key=value].",
    group="methods",
    shipped=("deltakit.interop",),
)
"""Libraries whose methods can be rows of a comparison, by the name before the colon."""

E = TypeVar("E", bound=type[ExternalMethod])


def register_provider(name: str) -> Callable[[E], E]:
    """Class decorator: makes a library's methods known by ``name:method``.

    Args:
        name: the word before the colon.

    Raises:
        NameInUse: another library has the name, or another method the class's.
    """

    def decorate(cls: E) -> E:
        CLASSES.check(cls.__name__, cls)
        PROVIDERS.add(name, cls)
        CLASSES.add(cls.__name__, cls)
        cls.provider = name
        return cls

    return decorate


@dataclass(frozen=True)
class ProviderEntry(Entry):
    """A name after a colon, as `parse_method` builds it. The library checks its settings."""

    def build(self, **fields: Any) -> Method:
        """The method. Raises as the library's class."""
        return super().build(settings=tuple(fields.items()))


def provider_entry(provider: str, name: str) -> Entry:
    """The entry of ``provider:name``. Raises `UnknownName` for the provider."""
    return ProviderEntry(PROVIDERS.get(provider), (("name", name),))


def settings_of(pairs: object) -> tuple[tuple[str, Any], ...]:
    """Settings in one order, however they were given.

    Raises:
        InvalidConfig: they are not pairs of a name and a value.
    """
    items = tuple(pairs.items()) if isinstance(pairs, Mapping) else pairs
    if not isinstance(items, tuple | list) or not all(
        isinstance(p, tuple | list) and len(p) == 2 and isinstance(p[0], str) for p in items
    ):
        raise InvalidConfig(f"settings={pairs!r}: pairs of a name and a value, (('r', 8),).")
    return tuple(sorted(((key, value) for key, value in items), key=lambda pair: pair[0]))
