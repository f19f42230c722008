"""Folding deltas into the base's weights, what that loses, and taking them out bit for bit."""

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.arch.base_weight import bias_vector, weight_matrix
from deltakit.arch.resolve import linear_widths
from deltakit.core.delta import FFNUnits, Mergeable, MergesAsFFN, RewritesWeight, Scaling, precise
from deltakit.core.site import Handle, HookKind, Insertion, Site
from deltakit.errors import NotMergeable, UnknownArchitecture
from deltakit.inject.attachments import Attachments, Merged, computes, need_attachments
from deltakit.inject.config_changes import config_changes, unsaid_width
from deltakit.inject.fold import FoldedSites, fold
from deltakit.inject.merge_report import MergedLinear, MergeReport
from deltakit.inject.partitions import wrapper_of
from deltakit.inject.places import place_of, set_weight
from deltakit.inject.switch import active_nodes, check_reached, reapply, take_off
from deltakit.models.quantised import codec_of, dequantised_linear
from deltakit.runtime.hooks import is_resized
from deltakit.runtime.nodes import Node, PlacedDelta, SumNode
from deltakit.runtime.twins import is_offloaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EQUAL = {
    "gelu_python": "gelu",
    "gelu_accurate": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_python_tanh": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
    "linear": "identity",
    "swish": "silu",
}
"""Names that transformers has for one nonlinearity."""


@torch.inference_mode(False)  # what is made in inference mode cannot be trained on
@torch.no_grad()
def merge(
    model: "PreTrainedModel",
    *,
    dequantise: bool = False,
    tolerance: float = 0.05,
    keep: bool = False,
) -> MergeReport:
    """Folds the active deltas into the weights: the model then runs without any hook.

    A linear change of a linear projection goes into its weight. A parallel bottleneck
    with the nonlinearity of a feed-forward of two projections makes that feed-forward wider.
    A fusion over bottlenecks or LoRAs is folded: its matrices are multiplied with its members', and
    the hooks at its sites stay. It is saved as it was.

    The originals are kept, so `unmerge` restores them bit for bit. A quantised linear gives its
    place to one that holds the merged weight, quantised again, which may lose much of a small
    change; the loss is measured. Merging twice changes nothing.

    Args:
        model: a model with deltas.
        dequantise: puts plain linears of the site's dtype in place of quantised ones.
        tolerance: how large a part of the deltas' effect may be lost without a warning.
        keep: whether the merge stays in the weights when its deltas are detached.

    Returns:
        The error of each linear that has changed, and the deltas' effect on it.

    Raises:
        NotMergeable: an active delta is none of these, or one that is folded is to be kept.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    if attachments.merged is not None and attachments.merged.report is not None:
        _check_kept(attachments.merged.report.folded, keep=keep)
        attachments.merged.kept |= keep
        return attachments.merged.report
    check_reached(attachments)
    _check_whole(model, attachments)
    nodes = active_nodes(attachments)
    folded = {key: found for key, node in nodes.items() if (found := fold(node)) is not None}
    _check_kept(tuple(folded), keep=keep)
    changes = [
        _change(attachments.handles, attachments.handles[key], node)
        for key, node in nodes.items()
        if key not in folded
    ]
    for change in changes:
        _check_alone(model, change.handle)
    with _unmerged_on_error(model, attachments):
        merged = attachments.merged = _own_folded(model, attachments)
        merged.report = report = MergeReport(
            linears=tuple(
                linear
                for stage in _staged(model, changes)
                for linear in stage.write(merged.originals, dequantise=dequantise)
            ),
            folded=tuple(folded),
        )
        merged.kept = keep
        merged.undo.extend(config_changes(model, merged.originals, dequantised=dequantise))
        if folded:
            merged.undo.append(FoldedSites(model, attachments, folded))
            merged.undo[-1].apply()
    if keep:
        _tell_width(model, merged)
    if report.relative > tolerance:
        rounded = dequantise or all(
            isinstance(value, nn.Parameter) for value in merged.originals.values()
        )
        _warn(report, "In float32 it loses nothing" if rounded else _LESS)
    return report


def _check_kept(folded: tuple[str, ...], *, keep: bool) -> None:
    if folded and keep:
        raise NotMergeable(
            f"the delta at {folded[0]!r} is folded, not merged into a weight, so it cannot stay "
            "when it is detached. Merge with keep=False, and leave it attached."
        )


def unmerge(model: "PreTrainedModel") -> None:
    """Restores the original weights, bit for bit, and the deltas' hooks.

    Raises:
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    if attachments.merged is not None:
        reapply(model, attachments)


@contextlib.contextmanager
def _unmerged_on_error(model: "PreTrainedModel", attachments: Attachments) -> Iterator[None]:
    try:
        yield
    except BaseException:
        reapply(model, attachments)
        raise


def _own_folded(model: "PreTrainedModel", attachments: Attachments) -> Merged:
    """Puts copies of the active deltas' own parameters, frozen, into their places."""
    owners = attachments.owners(() if attachments.active is None else attachments.active.names)
    take_off(model, attachments)
    merged = Merged()
    for name, owner in owners.items():
        value = owner.own[name].detach().clone()
        for each in owner.aliases[name]:
            new = nn.Parameter(value, requires_grad=False)
            merged.originals[each] = set_weight(model, each, new)
    return merged


# ----------------------------------------------------------------------- what becomes of the base


@dataclass(kw_only=True, eq=False)
class _Stage:
    """The weights of one layer while changes are made to them, in single precision at least."""

    model: nn.Module
    handles: dict[str, Handle] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, handle: Handle) -> Tensor:
        """As ``(out, in)``."""
        if handle.path not in self.originals:
            self.handles[handle.path] = handle
            self.originals[handle.path] = weight_matrix(self.module(handle.path))
        return self.weights.get(handle.path, self.originals[handle.path])

    def bias(self, handle: Handle) -> Tensor | None:
        bias = self.biases.get(handle.path)
        return bias_vector(self.module(handle.path)) if bias is None else bias

    def module(self, path: str) -> nn.Module:
        """What is in the model there now."""
        return self.model.get_submodule(path)

    def write(
        self, merged: dict[str, nn.Parameter | nn.Module], *, dequantise: bool
    ) -> Iterator[MergedLinear]:
        """Puts the new values into the model, and the originals into `merged`."""
        for path, weight in self.weights.items():
            before, dtype = self.originals[path], self.handles[path].dtype
            effect = float(torch.linalg.norm(weight - F.pad(before, _growth(before, weight))))
            name, value = _placed(path, self.module(path), weight, dtype if dequantise else None)
            if isinstance(value, nn.Module) and not effect:
                value = self.module(path)  # quantising again would change what no delta does
            merged.setdefault(name, set_weight(self.model, name, _frozen(value)))
            found = weight_matrix(self.module(path))
            error = float(torch.linalg.norm(found - weight)) if effect else 0.0
            yield MergedLinear(path=path, effect=effect, error=error)
        for path, bias in self.biases.items():
            name = f"{path}.bias"
            merged.setdefault(name, set_weight(self.model, name, _frozen(bias)))


def _frozen(value: Tensor | nn.Module) -> nn.Parameter | nn.Module:
    return value if isinstance(value, nn.Module) else nn.Parameter(value, requires_grad=False)


def _growth(before: Tensor, after: Tensor) -> tuple[int, int, int, int]:
    """How much wider and higher a weight has become, as `pad` takes it."""
    return 0, after.shape[1] - before.shape[1], 0, after.shape[0] - before.shape[0]


def _placed(
    path: str, module: nn.Module, weight: Tensor, dtype: torch.dtype | None
) -> tuple[str, Tensor | nn.Module]:
    """What holds the new weight, and its name: a parameter's value, or another module.

    Args:
        path: the module's name.
        module: what is in the model there now.
        weight: as ``(out, in)``.
        dtype: of a plain linear in place of a quantised one; None quantises the weight again.
    """
    codec = codec_of(module)
    if codec is None:
        value = weight if isinstance(module, nn.Linear) else weight.T
        return f"{path}.weight", value.contiguous()
    if dtype is None:
        return path, codec.like(module, weight)
    return path, dequantised_linear(module, weight.to(dtype))


def _staged(model: nn.Module, changes: list["_Change"]) -> Iterator[_Stage]:
    """The changes, layer by layer, so that one layer is held in full precision at a time."""
    layers: dict[tuple[str, int], list[_Change]] = {}
    for change in changes:
        layers.setdefault(change.layer, []).append(change)
    for layer in layers.values():
        stage = _Stage(model=model)
        for change in sorted(layer, key=lambda change: change.order):
            change.make(stage)
        yield stage


def _warn(report: MergeReport, way_out: str) -> None:
    warnings.warn(
        f"merging loses {report.relative:.0%} of what the deltas change in the weights, at worst "
        f"{report.largest:.0%} in one linear. {way_out}; unmerge(model) restores the base exactly.",
        stacklevel=5,  # merge's caller: two decorators are in between
    )


def _tell_width(model: "PreTrainedModel", merged: Merged) -> None:
    path = unsaid_width(model, merged.originals)
    if path is not None:
        warnings.warn(
            f"{path!r} has become wider and other layers have not, which no config can say, so "
            "what save_pretrained writes of this model does not load. Save the delta instead, and "
            "merge it after loading.",
            stacklevel=5,
        )


_LESS = "merge(model, dequantise=True) loses less"


class _Change(ABC):
    """What merging makes of some parameters of the base."""

    order: ClassVar[int]
    """When it is made: it reaches what an earlier one has added, too."""
    handle: Handle

    @property
    def layer(self) -> tuple[str, int]:
        """The stack and the layer that it is in."""
        return self.handle.stack, self.handle.layer

    @abstractmethod
    def make(self, stage: _Stage) -> None:
        """Makes it to the staged values."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold(_Change):
    """One linear, or some columns of it: W <- diag(factor) W + change, b <- factor b."""

    order: ClassVar[int] = 0
    handle: Handle
    factor: Tensor | None
    change: Tensor | None
    rewrites: tuple[tuple[float, RewritesWeight], ...] = ()

    def make(self, stage: _Stage) -> None:
        weight, bias, path = stage.weight(self.handle), stage.bias(self.handle), self.handle.path
        rows = before = self._rows(weight)
        rows = rows if self.factor is None else rows * self.factor[:, None]
        rows = rows if self.change is None else rows + self.change
        for scale, delta in self.rewrites:
            rows = rows + scale * (precise(delta.rewritten(before)) - before)
        stage.weights[path] = self._with_rows(weight, rows)
        if self.factor is not None and bias is not None:
            stage.biases[path] = self._with_rows(bias, self._rows(bias) * self.factor)

    def _rows(self, whole: Tensor) -> Tensor:
        columns = self.handle.columns
        return whole if columns is None else _swap(columns.read(_swap(whole)))

    def _with_rows(self, whole: Tensor, rows: Tensor) -> Tensor:
        columns = self.handle.columns
        return rows if columns is None else _swap(columns.write(_swap(whole), _swap(rows)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _RescaledInput(_Change):
    """The input of one linear: W <- W diag(factor)."""

    order: ClassVar[int] = 1
    handle: Handle
    factor: Tensor

    def make(self, stage: _Stage) -> None:
        stage.weights[self.handle.path] = stage.weight(self.handle) * self.factor


@dataclass(frozen=True, kw_only=True, eq=False)
class _Wider(_Change):
    """A feed-forward with more units: they read what it reads and add to what it returns."""

    order: ClassVar[int] = 2
    handle: Handle
    up: Handle
    down: Handle
    units: tuple[FFNUnits, ...]

    def make(self, stage: _Stage) -> None:
        inner, outer, units = stage.weight(self.up), stage.weight(self.down), self.units
        stage.weights[self.up.path] = torch.cat([inner, *(u.down for u in units)])
        stage.weights[self.down.path] = torch.cat([outer, *(u.up for u in units)], dim=1)
        bias = stage.bias(self.up)
        if bias is not None:
            stage.biases[self.up.path] = torch.cat([bias, *(u.down_bias for u in units)])
        bias = stage.bias(self.down)
        if bias is not None:
            stage.biases[self.down.path] = sum((u.up_bias for u in units), bias)


def _swap(tensor: Tensor) -> Tensor:
    """The first axis last, and back; a bias has only one."""
    return tensor.transpose(0, -1)


# ------------------------------------------------------------------------ what the deltas come to


def _change(handles: Mapping[str, Handle], handle: Handle, node: Node) -> _Change:
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


def _fold(handle: Handle, leaves: tuple[PlacedDelta, ...]) -> _Change:
    factors, changes, rewrites = [], [], []
    for leaf in leaves:
        delta = leaf.delta
        if isinstance(delta, Scaling) and leaf.insertion is Insertion.SEQUENTIAL:
            factors.append(leaf.scale * (precise(delta.factor().detach()) - 1))
        elif isinstance(delta, Mergeable) and _beside(handle, leaf):
            changes.append(leaf.scale * precise(delta.weight_change().detach()))
        elif isinstance(delta, RewritesWeight) and _is_own_input(handle):
            rewrites.append((leaf.scale, delta))
        else:
            raise NotMergeable(
                f"{type(delta).__name__} at {handle.key!r} does not fold into a weight: it is no "
                "linear change of one linear projection. Activate without it, then merge."
            )
    _check_linear(handle)
    factor = 1 + torch.stack(factors).sum(0) if factors else None
    if handle.hook_kind is HookKind.INPUT and factor is not None:
        return _RescaledInput(handle=handle, factor=factor)
    change = torch.stack(changes).sum(0) if changes else None
    return _Fold(handle=handle, factor=factor, change=change, rewrites=tuple(rewrites))


def _wider(
    handles: Mapping[str, Handle], handle: Handle, leaves: tuple[PlacedDelta, ...]
) -> _Change:
    layer = f"{handle.stack}.{handle.layer}"
    up, down, gate = (
        handles.get(f"{layer}.{site}") for site in (Site.FFN_UP, Site.FFN_DOWN, Site.FFN_GATE)
    )
    units = tuple(_units(leaf) for leaf in leaves)
    if gate is not None:
        reason: str | None = "it is gated, so its units are no f(x W)"
    elif up is None or down is None:
        reason = "its two projections are not known"
    else:
        reason = next(filter(None, (_obstacle(handle, up, down, each) for each in units)), None)
        if reason is None:
            return _Wider(handle=handle, up=up, down=down, units=units)
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
    if _EQUAL.get(ours, ours) != _EQUAL.get(theirs, theirs):
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


def _check_whole(model: nn.Module, attachments: Attachments) -> None:
    """The places of the deltas' own parameters are written to, too."""
    for name in attachments.owners(() if attachments.active is None else attachments.active.names):
        place = place_of(model, name)
        if is_offloaded(place.module) or wrapper_of(place.module) is not None:
            raise NotMergeable(
                f"{name!r} is sharded or offloaded, so nothing merges into it. Save the delta, "
                "load it on a base that is whole in memory, and merge there."
            )


def _check_alone(model: nn.Module, handle: Handle) -> None:
    """A table of embeddings may be the head's weight too, which the delta does not change."""
    if handle.site is Site.EMBED and is_resized(handle):
        raise NotMergeable(
            f"{handle.path!r} was resized after a delta was attached to it. Call "
            f"model.resize_token_embeddings({handle.d_in}) first, or leave the delta beside the "
            "base."
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
            "change as well. Untie them first, or leave the delta beside the base."
        )


def _beside(handle: Handle, leaf: PlacedDelta) -> bool:
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
