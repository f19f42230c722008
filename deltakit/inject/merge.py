"""Folding deltas into the base's weights, and taking them out again bit for bit."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from deltakit.arch.resolve import linear_widths
from deltakit.core.compose import Leaf, Node, Total
from deltakit.core.delta import Mergeable, Scaling, Units, Widening, precise
from deltakit.core.site import Handle, Insertion, Site, Tap
from deltakit.errors import NotMergeable, UnknownArchitecture
from deltakit.inject.active import active_nodes, put, reapply, take_hooks_off
from deltakit.inject.bank import need_bank

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


def merge(model: "PreTrainedModel") -> None:
    """Folds the active deltas into the weights: the model then runs without any hook.

    A linear change of a linear projection goes into its weight. A bottleneck beside a feed-forward
    of two projections, with the same nonlinearity, makes the feed-forward wider by its own width.

    The original weights are kept, so `unmerge` restores them bit for bit. Merging twice changes
    nothing.

    Raises:
        NotMergeable: an active delta is neither.
        DeltakitError: nothing is attached.
    """
    bank = need_bank(model)
    if bank.merged:
        return
    changes = [
        _change(bank.handles, bank.handles[key], node) for key, node in active_nodes(bank).items()
    ]
    take_hooks_off(bank)
    for change in sorted(changes, key=lambda change: change.order):
        for name, value in change.values():
            original = put(model, name, value)
            bank.merged.setdefault(name, original)


def unmerge(model: "PreTrainedModel") -> None:
    """Puts the original weights back, bit for bit, and the deltas beside them.

    Raises:
        DeltakitError: nothing is attached.
    """
    bank = need_bank(model)
    if bank.merged:
        reapply(model, bank)


# ----------------------------------------------------------------------- what becomes of the base


class _Change(ABC):
    """What merging makes of some parameters of the base."""

    order: ClassVar[int]
    """When it is made: it reaches what an earlier one has added, too."""

    @abstractmethod
    def values(self) -> Iterator[tuple[str, Tensor]]:
        """The new values by the parameters' names."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold(_Change):
    """One linear, or some columns of it: W <- diag(factor) W + change, b <- factor b."""

    order: ClassVar[int] = 0
    handle: Handle
    factor: Tensor | None
    change: Tensor | None

    def values(self) -> Iterator[tuple[str, Tensor]]:
        weight, bias = _matrix(self.handle), _bias(self.handle)
        rows = self._rows(weight)
        rows = rows if self.factor is None else rows * self.factor[:, None]
        rows = rows if self.change is None else rows + self.change
        yield _as_weight(self.handle, self._with_rows(weight, rows))
        if self.factor is not None and bias is not None:
            folded = self._with_rows(bias, self._rows(bias) * self.factor)
            yield f"{self.handle.path}.bias", folded

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

    def values(self) -> Iterator[tuple[str, Tensor]]:
        yield _as_weight(self.handle, _matrix(self.handle) * self.factor)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Wider(_Change):
    """A feed-forward with more units: they read what it reads and add to what it returns."""

    order: ClassVar[int] = 2
    up: Handle
    down: Handle
    units: tuple[Units, ...]

    def values(self) -> Iterator[tuple[str, Tensor]]:
        inner, outer = _matrix(self.up), _matrix(self.down)
        yield _as_weight(self.up, torch.cat([inner, *(u.down for u in self.units)]))
        yield _as_weight(self.down, torch.cat([outer, *(u.up for u in self.units)], dim=1))
        bias = _bias(self.up)
        if bias is not None:
            yield f"{self.up.path}.bias", torch.cat([bias, *(u.down_bias for u in self.units)])
        bias = _bias(self.down)
        if bias is not None:
            yield f"{self.down.path}.bias", sum((u.up_bias for u in self.units), bias)


def _swap(tensor: Tensor) -> Tensor:
    """The first axis last, and back; a bias has only one."""
    return tensor.transpose(0, -1)


def _matrix(handle: Handle) -> Tensor:
    """The weight as ``(out, in)``, in single precision at least."""
    weight = precise(handle.module.get_parameter("weight").detach())
    return weight if isinstance(handle.module, nn.Linear) else weight.T


def _as_weight(handle: Handle, matrix: Tensor) -> tuple[str, Tensor]:
    """The parameter's name, and its value as the module has it: Conv1D's is ``(in, out)``."""
    value = matrix if isinstance(handle.module, nn.Linear) else matrix.T
    return f"{handle.path}.weight", value.contiguous()


def _bias(handle: Handle) -> Tensor | None:
    bias = handle.module._parameters.get("bias")
    return None if bias is None else precise(bias.detach())


# ------------------------------------------------------------------------ what the deltas come to


def _change(handles: Mapping[str, Handle], handle: Handle, node: Node) -> _Change:
    """All deltas at a site read the same h and x, so factors, changes and units add up apart."""
    leaves = _terms(node)
    if leaves is None or handle.tap not in (Tap.OUTPUT, Tap.INPUT):
        parts = {type(part).__name__ for part in (*node.combiners, *(x.delta for x in node.leaves))}
        raise NotMergeable(
            f"{' over '.join(sorted(parts, reverse=True))} at {handle.key!r} does not fold into a "
            "weight; only a sum of linear changes of a linear projection does, such as LoRA's. "
            "Activate without it, then merge."
        )
    if handle.site is Site.FFN_OUT and all(_is_wide(leaf) for leaf in leaves):
        return _wider(handles, handle, leaves)
    return _fold(handle, leaves)


def _fold(handle: Handle, leaves: tuple[Leaf, ...]) -> _Change:
    factors, changes = [], []
    for leaf in leaves:
        delta = leaf.delta
        if isinstance(delta, Scaling) and leaf.insertion is Insertion.SEQUENTIAL:
            factors.append(leaf.scale * (precise(delta.factor().detach()) - 1))
        elif isinstance(delta, Mergeable) and _beside(handle, leaf):
            changes.append(leaf.scale * precise(delta.weight_change().detach()))
        else:
            raise NotMergeable(
                f"{type(delta).__name__} at {handle.key!r} does not fold into a weight: it is no "
                "linear change of one linear projection. Activate without it, then merge."
            )
    _check_linear(handle)
    factor = 1 + torch.stack(factors).sum(0) if factors else None
    if handle.tap is Tap.INPUT and factor is not None:
        return _RescaledInput(handle=handle, factor=factor)
    change = torch.stack(changes).sum(0) if changes else None
    return _Fold(handle=handle, factor=factor, change=change)


def _wider(handles: Mapping[str, Handle], handle: Handle, leaves: tuple[Leaf, ...]) -> _Change:
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
            return _Wider(up=up, down=down, units=units)
    raise NotMergeable(
        f"{type(leaves[0].delta).__name__} at {handle.key!r} does not merge into a wider "
        f"feed-forward: {reason}. Activate without it, then merge."
    )


def _obstacle(handle: Handle, up: Handle, down: Handle, units: Units) -> str | None:
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
        if _bias(each) is None and bias.any():
            return f"{each.path!r} has no bias to take the adapter's"
    return None


@torch.no_grad()
def _units(leaf: Leaf) -> Units:
    assert isinstance(leaf.delta, Widening)
    units = leaf.delta.units()
    down, down_bias, up, up_bias = map(precise, units[:4])
    return Units(down, down_bias, up, up_bias, units.activation).scaled(leaf.scale)


def _is_wide(leaf: Leaf) -> bool:
    return isinstance(leaf.delta, Widening) and leaf.insertion is Insertion.PARALLEL


def _check_linear(handle: Handle) -> None:
    try:
        linear_widths(handle.module)
    except UnknownArchitecture as error:
        raise NotMergeable(f"{handle.path!r} holds no weight to fold into: {error}") from None
    for name, parameter in handle.module.named_parameters(recurse=False):
        if not parameter.is_floating_point():
            raise NotMergeable(
                f"{handle.path!r} is quantised ({name} is {parameter.dtype}); merge into a "
                "floating-point base."
            )


def _beside(handle: Handle, leaf: Leaf) -> bool:
    return (
        leaf.insertion is Insertion.PARALLEL
        and handle.tap is Tap.OUTPUT
        and handle.reader is None  # x is the linear's own input
    )


def _terms(node: Node) -> tuple[Leaf, ...] | None:
    """The leaves whose plain sum the node is, or None."""
    match node:
        case Leaf():
            return (node,)
        case Total(parts=parts, weights=None):
            terms = [_terms(part) for part in parts]
            return None if None in terms else tuple(leaf for t in terms if t for leaf in t)
        case _:
            return None
