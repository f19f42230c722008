"""A model in PEFT's terms: the names of its modules, and the site of each."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor, nn

from deltakit.arch.resolve import linear_widths, resolve
from deltakit.core.method import Method, Sum
from deltakit.core.site import LINEAR_SITES, Handle, HookKind, Site
from deltakit.errors import CheckpointError, IncompatibleDeltas
from deltakit.inject.attachments import CHILD, attachments_of
from deltakit.inject.base_names import base_parameters, head_names, parameter_names
from deltakit.methods.drop import AdapterDrop

if TYPE_CHECKING:
    from transformers import PreTrainedModel

M = TypeVar("M", bound=Method)
Paths = dict[str, tuple[Handle, ...]]
"""Sites by the name of the module that holds them."""


@dataclass(frozen=True, eq=False)
class PeftView:
    """A model without our deltas. It is only looked at, and may be on the meta device."""

    model: "PreTrainedModel"
    former: Mapping[str, str] = field(default_factory=dict)
    """The names that a folder has for modules which transformers has renamed since."""

    def names_of(self, module: str) -> tuple[str, ...]:
        """The names by which a config may mean a module: today's first."""
        return (module, self.former[module]) if module in self.former else (module,)

    @property
    def kind(self) -> str:
        """Its class's name."""
        return type(self.model).__name__

    @cached_property
    def handles(self) -> tuple[Handle, ...]:
        """Its sites."""
        attachments = attachments_of(self.model)
        return resolve(self.model) if attachments is None else tuple(attachments.handles.values())

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Its modules by name, one that has several names once."""
        return {name: module for name, module in self.model.named_modules() if _is_theirs(name)}

    @cached_property
    def places(self) -> tuple[tuple[str, nn.Module], ...]:
        """Every name of a module, and the module."""
        places = self.model.named_modules(remove_duplicate=False)
        return tuple((name, module) for name, module in places if _is_theirs(name))

    @cached_property
    def state(self) -> dict[str, Tensor]:
        """Its parameters and buffers, by every name that they have."""
        return {name: t for name, t in self.model.state_dict().items() if _is_theirs(name)}

    @cached_property
    def linears(self) -> Paths:
        """The sites that are a linear projection, or some columns of one."""
        return self._by_path(lambda handle: handle.site in LINEAR_SITES)

    @cached_property
    def tables(self) -> Paths:
        """The sites that are a table of embeddings."""
        return self._by_path(lambda handle: handle.site is Site.EMBED)

    @cached_property
    def inputs(self) -> Paths:
        """The sites that are what a module is given."""
        return self._by_path(lambda handle: handle.hook_kind is HookKind.INPUT)

    def _by_path(self, wanted: Callable[[Handle], bool]) -> Paths:
        found: Paths = {}
        for handle in filter(wanted, self.handles):
            found[handle.path] = (*found.get(handle.path, ()), handle)
        return found

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Its parameters by name, one that has several names once."""
        return base_parameters(self.model)

    @cached_property
    def vocabulary(self) -> tuple[str, ...]:
        """All names of the parameters of its input and output embeddings."""
        tables = [_input_embeddings(self.model), self.model.get_output_embeddings()]
        paths = [name for name, module in self.places if any(module is each for each in tables)]
        return tuple(name for name in self.state if name.rpartition(".")[0] in paths)

    @cached_property
    def names(self) -> dict[str, tuple[str, ...]]:
        """All names of each parameter, by its first."""
        return {names[0]: names for names in parameter_names(self.model)}

    @cached_property
    def head(self) -> frozenset[str]:
        """The names of the task head's parameters."""
        return head_names(self.model)

    def no_site(self, path: str, origin: object, what: str = "") -> CheckpointError:
        """The error for a module that is none of the sites."""
        sites = ", ".join(sorted({handle.site.value for handle in self.handles}))
        return CheckpointError(
            f"{origin} targets {what}{path!r} ({type(self.modules[path]).__name__}), which is none "
            f"of the sites of this {self.kind}: {sites}."
        )

    def trained(self, method: Method) -> frozenset[str]:
        """The parameters of the base, without those of the head, that a method trains."""
        owners = {"": self.model, **self.modules}
        return frozenset(
            name
            for name in self.parameters.keys() - self.head
            if method.trains_base_parameter(name, owners[name.rpartition(".")[0]])
        )


def _input_embeddings(model: "PreTrainedModel") -> nn.Module | None:
    """The input embeddings; None for models made of two, for which transformers names none."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _is_theirs(name: str) -> bool:
    return name not in ("", CHILD) and not name.startswith(f"{CHILD}.")


# ------------------------------------------------------------------- methods, term by term and back


@dataclass(frozen=True, kw_only=True)
class KeyedDelta(Generic[M]):
    """A delta at a site, and the key of its tensors.

    Attributes:
        handle: the site.
        key: what the keys of its tensors begin with, in a checkpoint.
        term: the method that has put it there.
    """

    handle: Handle
    key: str
    term: M


Drops = tuple[AdapterDrop, ...]
"""The modifiers around a term, which say what layers go without it."""


def terms(method: Method, drops: Drops = ()) -> Iterator[tuple[Method, Drops]]:
    """The summands of a method."""
    match method:
        case Sum(parts=parts):
            for part in parts:
                yield from terms(part, drops)
        case AdapterDrop(method=inner):
            yield from terms(inner, (*drops, method))
        case _:
            yield method, drops


def sole(method: Method, kind: type[M]) -> M | None:
    """The only term that puts something somewhere, if it is of a kind and in all layers."""
    found = [(term, drops) for term, drops in terms(method) if term.placements()]
    if len(found) != 1 or any(drop.first or drop.layers or drop.stacks for drop in found[0][1]):
        return None
    term = found[0][0]
    return term if isinstance(term, kind) else None


def placements_on(
    method: Method, base: PeftView, kind: type[M]
) -> dict[str, tuple[KeyedDelta[M], ...]]:
    """Every delta of a method on a model, by the name of the module that holds the site.

    None, where terms of another kind put something somewhere.
    """
    found: dict[str, tuple[KeyedDelta[M], ...]] = {}
    taken: dict[str, int] = {}
    for term, drops in terms(method):
        sites = [placement.site for placement in term.placements()]
        if sites and not isinstance(term, kind):
            return {}
        for handle in (h for site in sites for h in base.handles if h.site is site):
            if isinstance(term, kind) and not _is_dropped(handle, drops):
                index = taken[handle.key] = taken.get(handle.key, -1) + 1
                key = f"{handle.key}#{index}" if index else handle.key
                delta = KeyedDelta(handle=handle, key=key, term=term)
                found[handle.path] = (*found.get(handle.path, ()), delta)
    return found


def _is_dropped(handle: Handle, drops: Drops) -> bool:
    layer, stack = handle.layer, handle.stack
    return handle.in_a_layer and any(
        layer < d.first or layer in d.layers or stack in d.stacks for d in drops
    )


def arranged(
    settings: Mapping[str, M], base: PeftView, make: Callable[[M, tuple[Site, ...]], Method]
) -> tuple[Method, ...]:
    """The terms of a method that has, at each site, the setting that is given for it.

    Args:
        settings: by the handle's key; a site without one is left alone.
        base: the model.
        make: a setting at some sites, in all layers.

    Raises:
        IncompatibleDeltas: the sites are of one stack of several, which no method can say.
    """
    where: dict[tuple[M, Site], set[tuple[str, int]]] = {}
    for handle in base.handles:
        if handle.key in settings:
            group = where.setdefault((settings[handle.key], handle.site), set())
            group.add((handle.stack, handle.layer))
    groups: dict[tuple[M, frozenset[int]], list[Site]] = {}
    for (setting, site), chosen in where.items():
        groups.setdefault((setting, _omitted(site, chosen, base)), []).append(site)
    return tuple(
        AdapterDrop(term, layers=sorted(omitted)) if omitted else term
        for (setting, omitted), sites in groups.items()
        for term in (make(setting, tuple(sites)),)
    )


def _omitted(site: Site, chosen: set[tuple[str, int]], base: PeftView) -> frozenset[int]:
    """The layers, of every stack, in which the site is not chosen."""
    everywhere = {(h.stack, h.layer) for h in base.handles if h.site is site}
    omitted = {layer for _, layer in everywhere} - {layer for _, layer in chosen}
    missed = {(stack, layer) for stack, layer in everywhere - chosen if layer not in omitted}
    if missed:
        stack, layer = min(missed)
        raise IncompatibleDeltas(
            f"{site.value!r} is targeted in layer {layer} of one stack, and not in that of "
            f"{stack!r}; deltakit puts a method into the same layers of every stack."
        )
    return frozenset(omitted)


# --------------------------------------------------------------------------- columns of projections


def widths(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear projection, or of a table of embeddings: of one-hot vectors."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return linear_widths(module)


def part_of(handle: Handle, whole: Tensor) -> Tensor:
    """The site's entries of what its whole projection has, along the last axis."""
    return whole if handle.columns is None else handle.columns.read(whole)


def with_part(handle: Handle, whole: Tensor, part: Tensor) -> Tensor:
    """`whole` with the site's entries replaced."""
    return part if handle.columns is None else handle.columns.write(whole, part)


def copied(tensor: Tensor) -> Tensor:
    """The values, in memory of their own and in order."""
    return tensor.clone(memory_format=torch.contiguous_format)


def same(one: Tensor, other: Tensor) -> bool:
    """True if two tensors are equal in shape, dtype and every value."""
    return one.dtype == other.dtype and torch.equal(one, other)
