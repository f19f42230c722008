"""The vocabulary of a family's data file: stacks of layers, sites and their locations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltakit._registry import Registry
from deltakit.core.site import Columns, HookKind, Site

ColumnsOf = Callable[[Any], Columns]
"""From a model's config to the columns of one site in a fused projection."""


@dataclass(frozen=True, kw_only=True)
class Location:
    """The place of one site, relative to its layer.

    Attributes:
        path: dotted path of the module; "" is the layer itself.
        hook_kind: how the site is reached in it.
        reads: dotted path of the module whose input is x, where it is not the same module.
        relative: dotted path, in the stack's first layer, of the module whose ``compute_bias``
            gives the biases of relative positions; None where there are none.
        columns: the part of the module's output, where projections are fused.
    """

    path: str
    hook_kind: HookKind = HookKind.OUTPUT
    reads: str | None = None
    relative: str | None = None
    columns: ColumnsOf | None = None


def output(path: str, *, reads: str | None = None, columns: ColumnsOf | None = None) -> Location:
    """The site is what the module at `path` returns."""
    return Location(path=path, reads=reads, columns=columns)


def input_of(path: str) -> Location:
    """The site is what the module at `path` is given."""
    return Location(path=path, hook_kind=HookKind.INPUT)


def norm(path: str) -> Location:
    """The site is the stream around the post-LN norm at `path`."""
    return Location(path=path, hook_kind=HookKind.NORM)


def attention(path: str, *, relative: str | None = None) -> Location:
    """The site is the keys and values in the attention module at `path`.

    That module must call transformers' attention interface.
    """
    return Location(path=path, hook_kind=HookKind.ATTENTION, relative=relative)


def disentangled(path: str) -> Location:
    """The site is the keys and values in DeBERTa-v2's attention module at `path`."""
    return Location(path=path, hook_kind=HookKind.DISENTANGLED)


def thirds(index: int) -> ColumnsOf:
    """Query (0), key (1) or value (2) in a projection of all three, one after the other."""

    def columns(config: Any) -> Columns:
        return Columns(first=index * config.hidden_size, width=config.hidden_size)

    return columns


def grouped_thirds(index: int) -> ColumnsOf:
    """Like `thirds`, where fewer heads have keys and values than queries."""

    def columns(config: Any) -> Columns:
        head = config.hidden_size // config.num_attention_heads
        query, rest = config.num_attention_heads * head, config.num_key_value_heads * head
        first = (0, query, query + rest)[index]
        return Columns(first=first, width=rest if index else query)

    return columns


def halves(index: int) -> ColumnsOf:
    """The first (0) or second (1) part of a projection of both inner activations of a gated FFN."""

    def columns(config: Any) -> Columns:
        return Columns(first=index * config.intermediate_size, width=config.intermediate_size)

    return columns


def head_thirds(index: int) -> ColumnsOf:
    """Query (0), key (1) or value (2) in a projection that has all three of each head together."""

    def columns(config: Any) -> Columns:
        width = config.hidden_size // config.num_attention_heads
        return Columns(
            first=index * width, width=width, stride=3 * width, count=config.num_attention_heads
        )

    return columns


@dataclass(frozen=True, kw_only=True)
class LayerStack:
    """A stack of like layers.

    Attributes:
        name: what the stack is called in keys and tables, for example "encoder".
        layers: dotted path of the list of layers, relative to the base model; "*" matches every
            item of a list.
        sites: where each site is in a layer, or a function of the config where models differ.
        config: the part of the model's config that is this stack's, for example "text_config".
        activation: the config's key for the nonlinearity of a plain feed-forward, ``f(x W) W'``;
            None where it is gated. Means nothing in a layer that has `Site.FFN_GATE`.
        optional: some models of the family do without this stack.
    """

    name: str
    layers: str
    sites: Mapping[Site, Location] | Callable[[Any], Mapping[Site, Location]]
    config: str | None = None
    activation: str | None = None
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The place of the sequence of input embeddings. A model without that module has no such site.

    Attributes:
        path: dotted path of the module that is given the tokens, relative to the base model.
        position: how many tokens stay in front of those that a delta adds: 1 where the first one
            is pooled.
        reader: dotted path of the module that attends to this one's output across, where the
            model has it.
    """

    path: str = ""
    position: int = 0
    reader: str | None = None


def _hidden_size(config: Any) -> int:
    return int(config.hidden_size)


def embedding_size(config: Any) -> int:
    """The width of embeddings that are projected to the layers' width behind them (ELECTRA)."""
    return int(getattr(config, "embedding_size", config.hidden_size))


@dataclass(frozen=True, kw_only=True)
class Embedded:
    """The place of what the first layer is given.

    Attributes:
        location: where it is, relative to the base model.
        width: from the config to its width.
    """

    location: Location
    width: Callable[[Any], int] = _hidden_size


@dataclass(frozen=True, kw_only=True)
class Family:
    """The sites of all models of these `model_types` (transformers' config value).

    Attributes:
        name: what the family is called.
        model_types: the config values.
        stacks: its stacks of layers.
        tokens: where the sequence of input embeddings is.
        tables: dotted paths, relative to the base model, of the tables that ids are looked up in,
            by the stack that each is for. By default there is one, the model's input embeddings,
            where `tokens` is given.
        embedded: where what the first layer is given is; with it a language-modelling head's input
            is a site too.
        positions: dotted path, relative to the base model, of the module that makes vectors or
            rotations of the tokens' positions; None where they are relative, or read elsewhere too.
        parts: attributes that are models with families of their own, for a model that is made of
            several. The layers of each are a stack of the part's name.
    """

    name: str
    model_types: tuple[str, ...]
    stacks: tuple[LayerStack, ...]
    tokens: Tokens | None = None
    tables: Mapping[str, str] = field(default_factory=dict)
    embedded: Embedded | None = None
    positions: str | None = None
    parts: tuple[str, ...] = ()


FAMILIES: Registry[Family] = Registry(
    "model type", group="families", shipped=("deltakit.arch.families",)
)


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
