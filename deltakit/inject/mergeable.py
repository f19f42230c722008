"""The active deltas as changes of weights, and why some do not merge."""

from collections.abc import Mapping

import torch
from torch import nn

from deltakit.arch.base_weight import bias_vector
from deltakit.arch.resolve import linear_widths
from deltakit.core.delta import FFNUnits, Mergeable, MergesAsFFN, RewritesWeight, Scaling, precise
from deltakit.core.site import Handle, HookKind, Insertion, Site
from deltakit.errors import NotMergeable, UnknownArchitecture
from deltakit.inject.attachments import Attachments
from deltakit.inject.base_names import computes
from deltakit.inject.partitions import wrapper_of
from deltakit.inject.places import place_of
from deltakit.inject.weight_changes import Change, Fold, RescaledInput, Wider
from deltakit.models.quantised import codec_of
from deltakit.runtime.hooks import is_resized
from deltakit.runtime.nodes import Node, PlacedDelta, SumNode
from deltakit.runtime.twins import is_offloaded

EQUAL_ACTIVATIONS = {
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "linear": "identity",
    "swish": "silu",
}
"""Names that transformers has for one nonlinearity."""


def change_of(handles: Mapping[str, Handle], handle: Handle, node: Node) -> Change:
    """All deltas at a site read the same h and x, so factors, changes and units add up apart."""
    leaves = _terms(node)
    if leaves is None or handle.hook_kind not in (HookKind.OUTPUT, HookKind.INPUT):
        parts = {type(part).__name__ for part in (*node.combiners, *(x.delta for x in node.leaves))}
        raise NotMergeable(
            f"{' over '.join(sorted(parts, reverse=True))} at {handle.key!r} does not fold into a "
            "weight; only a sum of linear changes of a linear projection does, such as LoRA's. "
            "Activate without it, then merge."
        )
    if handle.site is Site.FFN_OUT and all(_is_wide(leaf) for leaf in leaves):
        return _wider(handles, handle, leaves)
    return _fold(handle, leaves)


def _fold(handle: Handle, leaves: tuple[PlacedDelta, ...]) -> Change:
    factors, changes, rewrites = [], [], []
    for leaf in leaves:
        delta = leaf.delta
        if isinstance(delta, Scaling) and leaf.insertion is Insertion.SEQUENTIAL:
            factors.append(leaf.scale * (precise(delta.factor().detach()) - 1))
        elif isinstance(delta, Mergeable) and _is_parallel(handle, leaf):
            changes.append(leaf.scale * precise(delta.weight_change().detach()))
        elif isinstance(delta, RewritesWeight) and _is_own_input(handle):
            rewrites.append((leaf.scale, delta))
        else:
            raise NotMergeable(
                f"{type(delta).__name__} at {handle.key!r} does not fold into a weight: it is not "
                "a linear change of one linear projection. Activate without it, then merge."
            )
    _check_linear(handle)
    factor = 1 + torch.stack(factors).sum(0) if factors else None
    if handle.hook_kind is HookKind.INPUT and factor is not None:
        return RescaledInput(handle=handle, factor=factor)
    change = torch.stack(changes).sum(0) if changes else None
    return Fold(handle=handle, factor=factor, change=change, rewrites=tuple(rewrites))


def _wider(
    handles: Mapping[str, Handle], handle: Handle, leaves: tuple[PlacedDelta, ...]
) -> Change:
    layer = f"{handle.stack}.{handle.layer}"
    up, down, gate = (
        handles.get(f"{layer}.{site}") for site in (Site.FFN_UP, Site.FFN_DOWN, Site.FFN_GATE)
    )
    units = tuple(_units(leaf) for leaf in leaves)
    if gate is not None:
        reason: str | None = "it is gated, so its units are not f(x W)"
    elif up is None or down is None:
        reason = "its two projections are not known"
    else:
        reason = next(filter(None, (_obstacle(handle, up, down, each) for each in units)), None)
        if reason is None:
            return Wider(handle=handle, up=up, down=down, units=units)
    raise NotMergeable(
        f"{type(leaves[0].delta).__name__} at {handle.key!r} does not merge into a wider "
        f"feed-forward: {reason}. Activate without it, then merge."
    )


def _obstacle(handle: Handle, up: Handle, down: Handle, units: FFNUnits) -> str | None:
    """Why the units cannot be the feed-forward's own, or None."""
    _check_linear(up)
    _check_linear(down)
    reads = handle.reader or handle.module
    if all(module is not up.module for module in reads.modules()):
        return f"what it reads is not what {up.path!r} reads"
    ours, theirs = units.activation, str(handle.activation)
    if EQUAL_ACTIVATIONS.get(ours, ours) != EQUAL_ACTIVATIONS.get(theirs, theirs):
        return f"the feed-forward's nonlinearity is {theirs!r}, the adapter's {ours!r}"
    for each, bias in ((up, units.down_bias), (down, units.up_bias)):
        if bias_vector(each.module) is None and bias.any():
            return f"{each.path!r} has no bias to take the adapter's"
    return None


@torch.no_grad()
def _units(leaf: PlacedDelta) -> FFNUnits:
    assert isinstance(leaf.delta, MergesAsFFN)
    units = leaf.delta.units()
    down, down_bias, up, up_bias = map(precise, units[:4])
    return FFNUnits(down, down_bias, up, up_bias, units.activation).scaled(leaf.scale)


def _is_wide(leaf: PlacedDelta) -> bool:
    return isinstance(leaf.delta, MergesAsFFN) and leaf.insertion is Insertion.PARALLEL


def _check_linear(handle: Handle) -> None:
    if isinstance(handle.module, nn.Embedding):  # it is linear in which token it is
        return
    try:
        linear_widths(handle.module)
    except UnknownArchitecture as error:
        raise NotMergeable(f"{handle.path!r} holds no weight to fold into: {error}") from None
    if codec_of(handle.module) is not None:
        return
    _check_held(handle)
    for name, parameter in handle.module.named_parameters(recurse=False):
        if not computes(parameter.dtype):
            raise NotMergeable(
                f"{handle.path!r} is quantised ({name} is {parameter.dtype}) in a way that "
                "deltakit cannot undo; merge into a floating-point base."
            )


def _check_held(handle: Handle) -> None:
    """Weights that are elsewhere, or in part elsewhere, cannot be written to."""
    if is_offloaded(handle.module) or wrapper_of(handle.module) is not None:
        raise NotMergeable(
            f"the weight of {handle.path!r} is sharded or offloaded, so nothing merges into it. "
            "Save the delta, load it on a base that is whole in memory, and merge there."
        )


def check_own_places(model: nn.Module, attachments: Attachments) -> None:
    """The places of the deltas' own parameters are written to, too."""
    for name in attachments.owners(() if attachments.active is None else attachments.active.names):
        place = place_of(model, name)
        if is_offloaded(place.module) or wrapper_of(place.module) is not None:
            raise NotMergeable(
                f"{name!r} is sharded or offloaded, so nothing merges into it. Save the delta, "
                "load it on a base that is whole in memory, and merge there."
            )


def check_untied(model: nn.Module, handle: Handle) -> None:
    """A table of embeddings may be the head's weight too, which the delta does not change."""
    if handle.site is Site.EMBED and is_resized(handle):
        raise NotMergeable(
            f"{handle.path!r} was resized after a delta was attached to it. Call "
            f"model.resize_token_embeddings({handle.d_in}) first, or leave the delta unmerged."
        )
    weight = handle.module._parameters.get("weight")
    sharing = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if parameter is weight and name != f"{handle.path}.weight"
    ]
    if handle.site is Site.EMBED and sharing:
        raise NotMergeable(
            f"the weight of {handle.path!r} is {sharing[0]!r} too (tied), which merging would "
            "change as well. Untie them first, or leave the delta unmerged."
        )


def _is_parallel(handle: Handle, leaf: PlacedDelta) -> bool:
    return leaf.insertion is Insertion.PARALLEL and _is_own_input(handle)


def _is_own_input(handle: Handle) -> bool:
    """Whether x is the linear's own input, and h what it returns."""
    return handle.hook_kind is HookKind.OUTPUT and handle.reader is None


def _terms(node: Node) -> tuple[PlacedDelta, ...] | None:
    """The leaves whose plain sum the node is, or None."""
    match node:
        case PlacedDelta():
            return (node,)
        case SumNode(parts=parts, weights=None):
            terms = [_terms(part) for part in parts]
            return None if None in terms else tuple(leaf for t in terms if t for leaf in t)
        case _:
            return None
