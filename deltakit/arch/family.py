"""The words in which a model family says where its sites are: one small data file a family."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deltakit._registry import Registry
from deltakit.core.site import Site, Tap

Columns = Callable[[Any], tuple[int, int]]
"""From a model's config to the span of columns, first and one past the last."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where one site is, relative to its layer.

    Attributes:
        path: dotted path of the module; "" is the layer itself.
        tap: how the site is reached in it.
        reads: dotted path of the module whose input is x, where it is not the same module.
        columns: the span of the module's output, where projections are fused.
    """

    path: str
    tap: Tap = Tap.OUTPUT
    reads: str | None = None
    columns: Columns | None = None


def output(path: str, *, reads: str | None = None, columns: Columns | None = None) -> Location:
    """The site is what the module at `path` returns."""
    return Location(path=path, reads=reads, columns=columns)


def input_of(path: str) -> Location:
    """The site is what the module at `path` is given."""
    return Location(path=path, tap=Tap.INPUT)


def norm(path: str) -> Location:
    """The site is the stream around the post-LN norm at `path`."""
    return Location(path=path, tap=Tap.NORM)


def thirds(index: int) -> Columns:
    """The columns of query (0), key (1) or value (2) in a projection that fuses all three."""

    def columns(config: Any) -> tuple[int, int]:
        return index * config.hidden_size, (index + 1) * config.hidden_size

    return columns


@dataclass(frozen=True, kw_only=True)
class LayerStack:
    """A stack of like layers.

    Attributes:
        name: what the stack is called in keys and tables, for example "encoder".
        layers: dotted path of the list of layers, relative to the base model.
        sites: where each site is in a layer.
    """

    name: str
    layers: str
    sites: Mapping[Site, Location]


@dataclass(frozen=True, kw_only=True)
class Family:
    """Where the sites are in all models of these `model_types` (transformers' config value)."""

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[LayerStack, ...]


FAMILIES: Registry[Family] = Registry("model type")


def register_family(family: Family) -> Family:
    """Makes a family known for each of its model types. Returns it.

    Raises:
        NameInUse: another family has one of the model types.
    """
    for model_type in family.model_types:
        FAMILIES.check(model_type, family)
    for model_type in family.model_types:
        FAMILIES.add(model_type, family)
    return family
