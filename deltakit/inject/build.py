"""Building a delta: from a method and a model's handles to the modules that are attached."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from deltakit.arch.resolve import resolve
from deltakit.core.delta import Delta
from deltakit.core.method import CombiningMethod, Method, Placement, Role
from deltakit.core.site import POSITION_KINDS, Handle, Site
from deltakit.errors import IncompatibleDeltas, InvalidConfig, SiteNotFound
from deltakit.inject.attachments import Attached, Attachments, BaseFlags
from deltakit.inject.base_names import (
    base_parameters,
    computes,
    fresh_names,
    head_names,
    parameter_names,
)
from deltakit.inject.partitions import check_own_values
from deltakit.inject.places import place_of, runs_on, stored_value, weights_of, with_readable_weight
from deltakit.models.grown import grown_tables
from deltakit.models.quantised import codec_of
from deltakit.runtime.nodes import PlacedDelta
from deltakit.runtime.passes import LayerDrop

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def new_attachments(model: "PreTrainedModel") -> Attachments:
    """An empty record, with the model's handles and its flags as they are now."""
    frozen = dict.fromkeys(base_parameters(model), False)
    return Attachments(resolve(model), BaseFlags(other=frozen))


def build(
    model: "PreTrainedModel",
    attachments: Attachments,
    method: Method,
    name: str,
    dtype: torch.dtype | None,
) -> Attached:
    """A delta of the method, under the name; the model is not changed.

    Raises:
        SiteNotFound: the model lacks a site that the method needs.
        InvalidConfig: the method does not fit the model, or finds nothing to train in it.
        IncompatibleDeltas: members that cannot be composed.
        UnknownName: a member that is not attached.
    """
    attached = Attached(name=name, method=method)
    if isinstance(method, CombiningMethod):
        _build_combiners(model, attachments, attached, dtype)
    else:
        _build_leaves(model, attachments, attached, dtype)
    _build_own(model, attachments, attached, dtype)
    trains_base = attached.own.keys() - attached.head - attached.fresh
    if method.role is Role.METHOD and not attached.sites() and not trains_base:
        raise InvalidConfig(
            f"{type(method).__name__} finds nothing to train in this {type(model).__name__}. "
            "Take a method whose sites or parameters the model has; `deltakit sites MODEL` lists "
            "the sites."
        )
    return attached


def _build_own(
    model: "PreTrainedModel",
    attachments: Attachments,
    attached: Attached,
    dtype: torch.dtype | None,
) -> None:
    """The delta's own parameters of the base and the head, which start as copies."""
    aliases = {names[0]: names for names in parameter_names(model)}
    head, fresh = head_names(model), fresh_names(model)
    for name in _owned(model, attachments, attached.method, head, fresh):
        check_own_values([place_of(model, name).module])
        value = stored_value(model, name)
        value = value.to(dtype or trained_dtype(value.dtype), copy=True)
        attached.tree.put(name, nn.Parameter(value))
        attached.aliases[name] = aliases[name]
    attached.head = head & attached.own.keys()
    attached.fresh = (fresh - attached.head) & attached.own.keys()
    if attached.fresh:
        _tell_grown(model, attached)


def _tell_grown(model: "PreTrainedModel", attached: Attached) -> None:
    """Tells of large tables that the delta owns because they were resized."""
    grown = set(map(id, grown_tables(model)))
    names = [n for n in sorted(attached.fresh) if id(place_of(model, n).parameter) in grown]
    if names:
        warnings.warn(
            f"{', '.join(map(repr, names))} has more rows than the checkpoint that was loaded, so "
            f"{attached.name!r} trains and saves all of it. Freeze it before `attach` if its new "
            "rows mean nothing, or save the resized base and load that.",
            stacklevel=6,  # attach's caller
        )


def trained_dtype(base: torch.dtype) -> torch.dtype:
    """The dtype in which parameters are trained on a base of another: single precision at least.

    In half precision, steps that are small next to a parameter are rounded away.
    """
    return base if base == torch.float64 else torch.float32


def _build_leaves(
    model: nn.Module, attachments: Attachments, attached: Attached, dtype: torch.dtype | None
) -> None:
    _fit_tables(attachments)
    gates: dict[int, LayerDrop] = {}
    for placement in attached.method.placements():
        for handle in _handles(attachments, placement):
            up_to = placement.drop_up_to if handle.in_a_layer else 0
            leaf = PlacedDelta(
                _make(model, placement, handle, dtype),
                placement.insertion,
                placement.scale,
                gate=gates.setdefault(up_to, LayerDrop(up_to)) if up_to else None,
                layer=handle.layer,
                stack=_token_stack(handle),
            )
            attached.leaves[handle.key] = (*attached.leaves.get(handle.key, ()), leaf)


def _fit_tables(attachments: Attachments) -> None:
    """Gives tables of embeddings where no delta is the number of rows that they have now."""
    used = {key for each in attachments.attached.values() for key in each.leaves}
    for key, handle in attachments.handles.items():
        if (
            isinstance(handle.module, nn.Embedding)
            and handle.site is Site.EMBED
            and key not in used
        ):
            attachments.handles[key] = replace(handle, d_in=handle.module.num_embeddings)


def _handles(attachments: Attachments, placement: Placement) -> list[Handle]:
    found = [handle for handle in attachments.handles.values() if handle.site is placement.site]
    if not found and not placement.optional:
        sites = sorted({handle.site.value for handle in attachments.handles.values()})
        raise SiteNotFound(
            f"this model has no site {placement.site.value!r}{_why(placement.site)}. It has: "
            f"{', '.join(sites)}. Take a method whose sites are among these."
        )
    chosen = placement.layers
    check_layers(attachments, {*placement.omitted, placement.drop_up_to - 1} - {-1})
    check_layers(attachments, chosen or (), action="chosen")
    check_stacks(attachments, placement.omitted_stacks)
    across = frozenset() if placement.cross_attention else {"cross"}
    omitted = placement.omitted_stacks | across
    kept = [handle for handle in found if handle.stack not in omitted]
    return [
        handle
        for handle in kept
        if not left_out(handle, placement.omitted)
        and (chosen is None or handle.layer in chosen or not handle.in_a_layer)
    ]


def _token_stack(handle: Handle) -> str:
    """The stack whose tokens the site has: keys and values of cross-attention are an encoder's."""
    across = handle.stack == "cross" and handle.site in (Site.ATTN_K, Site.ATTN_V)
    return "encoder" if across else handle.stack


def left_out(handle: Handle, layers: frozenset[int]) -> bool:
    """True if the handle is in one of `layers`; the sites before all layers are in none."""
    return handle.layer in layers and handle.in_a_layer


def check_stacks(attachments: Attachments, stacks: Iterable[str]) -> None:
    """Raises `InvalidConfig` for a stack that the model does not have."""
    known = {handle.stack for handle in attachments.handles.values()}
    for stack in sorted({*stacks} - known):
        raise InvalidConfig(
            f"stack {stack!r} cannot be dropped: this model has {', '.join(sorted(known))}. "
            "Name some of those."
        )


def check_layers(attachments: Attachments, layers: Iterable[int], action: str = "dropped") -> None:
    """Raises `InvalidConfig` unless some stack of the model has every one of `layers`."""
    depth = 1 + max(handle.layer for handle in attachments.handles.values())
    for layer in sorted(layers):
        if not 0 <= layer < depth:
            raise InvalidConfig(
                f"layer {layer} cannot be {action}: this model has layers 0 to {depth - 1}. "
                "Name some of those."
            )


def _why(site: Site) -> str:
    """What a site takes that not every architecture has."""
    match site:
        case Site.ATTN_KV:
            return ": its attention does not call transformers' attention interface"
        case Site.FFN_STREAM:
            return ": no norm of the stream in front of its feed-forward is known"
        case Site.TOKENS:
            return ": no place for further tokens is known in it"
        case Site.EMBED:
            return ": no table is known in it that only looks up the vectors of token ids"
        case Site.EMBED_OUT:
            return ": where its embeddings end is not known"
        case Site.POSITION_IDS:
            return ": its tokens' positions are relative, or it is not known where all are read"
        case _:
            return ""


def _make(
    model: nn.Module, placement: Placement, handle: Handle, dtype: torch.dtype | None
) -> Delta:
    handle = with_readable_weight(handle)
    with torch.device(runs_on(model, handle)), weights_of(handle.embeddings):
        return placement.make_delta(handle).to(dtype or trained_dtype(handle.dtype))


def _build_combiners(
    model: nn.Module, attachments: Attachments, attached: Attached, dtype: torch.dtype | None
) -> None:
    method, kind = attached.method, type(attached.method).__name__
    assert isinstance(method, CombiningMethod)
    if not method.names:
        raise InvalidConfig(
            f"{kind} needs the names of attached deltas, for example {kind}('imdb', 'news'). "
            f"Attached: {', '.join(attachments.attached) or 'none'}."
        )
    members = [attachments.get(name) for name in method.names]
    for member in members:
        if member.combiners or not member.leaves:
            raise IncompatibleDeltas(
                f"{kind} cannot have {member.name!r} as a member: a "
                f"{type(member.method).__name__} proposes no change of its own at any site."
            )
        if set(member.leaves) != set(members[0].leaves):
            other = sorted(set(member.leaves) ^ set(members[0].leaves))[0]
            raise IncompatibleDeltas(
                f"{kind} needs members at the same sites, but {members[0].name!r} and "
                f"{member.name!r} differ at {other!r}. Fuse deltas of one placement."
            )
    attached.members = method.names
    for key in members[0].leaves:
        handle = attachments.handles[key]
        if handle.hook_kind in POSITION_KINDS:
            raise IncompatibleDeltas(
                f"{kind} weighs changes, and those at {key!r} are positions of a sequence, which "
                f"cannot be weighed. Members with {handle.site.value!r} cannot be fused."
            )
        with torch.device(runs_on(model, handle)):
            combiner = method.combiner(handle, method.names)
        attached.combiners[key] = combiner.to(dtype or trained_dtype(handle.dtype))


def _owned(
    model: "PreTrainedModel",
    attachments: Attachments,
    method: Method,
    head: frozenset[str],
    fresh: frozenset[str],
) -> Iterator[str]:
    """The parameters of the base and the head of which the delta has values of its own."""
    for name, parameter in base_parameters(model).items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if name in head or (name in fresh and codec_of(owner) is None):
            if attachments.flags.plain(name, parameter):
                yield name
        elif method.trains_base_parameter(name, owner):
            packed = name.endswith(".weight") and codec_of(owner) is not None
            if packed or not computes(parameter.dtype):
                raise IncompatibleDeltas(
                    f"{type(method).__name__} trains {name!r}, which is quantised "
                    f"({parameter.dtype}). Load the base in a floating-point dtype."
                )
            yield name
