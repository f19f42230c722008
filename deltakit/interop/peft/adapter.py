"""One adapter between a PEFT folder and a deltakit checkpoint."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from deltakit.core.checkpoint import first_few
from deltakit.core.method import Method, Sum, method_from_dict
from deltakit.errors import CheckpointError, DeltakitError
from deltakit.interop.files import Tensors, our_words
from deltakit.interop.peft.config import Config
from deltakit.interop.peft.saved_modules import (
    SavedModules,
    check_saved,
    saved_values,
    table_values,
    training,
)
from deltakit.interop.peft.targets import check_names
from deltakit.interop.peft.view import PeftView, same

TUNED = "base_model.model."
"""What the keys begin with where PEFT replaces modules inside the model."""
PROMPTED = "base_model."
"""What they begin with where it puts something in front of the model."""
Values = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A method and its values.

    Attributes:
        method: what it is.
        tensors: by ``<site>.<parameter>``.
        own: values for the model's own parameters, by name.
        name: what it was attached as.
    """

    method: Method
    tensors: Values
    own: Values
    name: str = "default"


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """The tuner-specific part of an adapter.

    Attributes:
        config: its own keys of the config.
        tensors: by the file's keys, without the model's own parameters.
        targeted: the names of the modules that have an adapter.
        prefix: what the keys of the model's own parameters begin with.
    """

    config: Mapping[str, Any]
    tensors: Values
    targeted: Collection[str] = ()
    prefix: str = TUNED


@dataclass(frozen=True, kw_only=True, eq=False)
class Folder:
    """The source of an adapter: a config and its file, for a model."""

    config: Config
    file: Tensors
    base: PeftView

    def take(
        self, shapes: Mapping[str, tuple[int, ...]], own: SavedModules
    ) -> tuple[Values, Values]:
        """All of the file: the adapter's tensors by key, and the model's own by parameter.

        Args:
            shapes: of the adapter's tensors.
            own: what else there must be.

        Raises:
            CheckpointError: a tensor that is missing, left over or of another shape.
        """
        tables = {key: name for key, name in own.tables.items() if key in self.file}
        self._check_keys({*shapes, *own.keys}, {*own.spare, *tables})
        values = {key: self.file.take(key) for key in shapes}
        given = {key: self.file.take(key) for key in own.keys}
        for key, shape in shapes.items():
            self._check_shape(key, values[key], shape)
        for key, name in own.keys.items():
            if name not in self.base.head:  # another head can be left where it is
                self._check_shape(key, given[key], tuple(self.base.state[name].shape))
        repeated = {**self.base.state, **{name: given[key] for key, name in own.keys.items()}}
        for key in own.spare.keys() & {*self.file}:
            self._check_repeated(key, self.file.take(key), repeated.get(own.spare[key] or ""))
        resized = {name: self.file.take(key) for key, name in tables.items()}
        found = saved_values(own, given, self.base, self.file.path)
        return values, {**table_values(resized, self.base, self.file.path), **found}

    def _check_repeated(self, key: str, value: Tensor, expected: Tensor | None) -> None:
        if expected is None:
            return
        if expected.is_meta:
            raise CheckpointError(
                f"{self.file.path}: {key!r} must be what the model has there, and only its shapes "
                "are here. Load it on the model itself."
            )
        if not same(value.to(expected.dtype), expected.cpu()):
            raise CheckpointError(
                f"{self.file.path}: {key!r} is not what this {self.base.kind} has there. Load it "
                "on the model that it was made on."
            )

    def _check_keys(self, needed: set[str], spare: set[str]) -> None:
        missing = first_few("lacks", sorted(key for key in needed if key not in self.file))
        extra = first_few("has", sorted(k for k in self.file if k not in needed and k not in spare))
        if missing or extra:
            check_names(self.config, self.base, self.config.names("target_modules") or ())
            check_saved(self.config, self.base)
            raise CheckpointError(
                f"{self.file.path} {' and '.join(filter(None, (missing, extra)))}, unlike what "
                f"{self.config.path.name} describes for a {self.base.kind}. Load it on a model of "
                "the class and size that it was made for."
            )

    def _check_shape(self, key: str, value: Tensor, shape: tuple[int, ...]) -> None:
        if value.shape != shape:
            raise CheckpointError(
                f"{self.file.path}: {key!r} has shape {tuple(value.shape)}; by "
                f"{self.config.path.name} and this {self.base.kind} it must have {shape}."
            )

    def adapter(
        self,
        own: Values,
        plain: Callable[[], tuple[Method, ...]],
        apart: Callable[[Method], Values | None],
    ) -> Adapter:
        """The adapter in the folder: from deltakit's metadata where it is true, else from PEFT's.

        Args:
            own: the values for the model's own parameters.
            plain: the terms of a method from the config alone.
            apart: the tensors of a method that the file holds; None where the config names another.

        Raises:
            CheckpointError: no method fits the config.
        """
        words = our_words(self.file)
        said, name = _method(words.get("method")), str(words.get("name", "default"))
        trained = own.keys() - self.base.head
        if said is not None and self.base.trained(said) == trained:
            tensors = apart(said)
            if tensors is not None:
                return Adapter(method=said, tensors=tensors, own=own, name=name)
        parts = (*plain(), *training(own, self.base))
        method = parts[0] if len(parts) == 1 else Sum(parts=parts)
        tensors = apart(method)
        if tensors is None:
            raise CheckpointError(
                f"{self.file.path} changes columns of a projection that are not a site of this "
                f"{self.base.kind}, so deltakit cannot hold them."
            )
        return Adapter(method=method, tensors=tensors, own=own, name=name)


def _method(words: object) -> Method | None:
    """The method that was saved; None where there is none that this deltakit understands."""
    try:
        return method_from_dict(words) if isinstance(words, dict) else None
    except (DeltakitError, TypeError, ValueError, RecursionError):
        return None
