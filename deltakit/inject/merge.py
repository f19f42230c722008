"""Folding deltas into the base's weights, and taking them out again bit for bit."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deltakit.arch.resolve import linear_widths
from deltakit.core.compose import Leaf, Node, Total
from deltakit.core.delta import Mergeable, Scaling
from deltakit.core.site import Handle, Insertion, Tap
from deltakit.errors import NotMergeable, UnknownArchitecture
from deltakit.inject.attach import active_nodes, reapply, take_hooks_off
from deltakit.inject.bank import need_bank

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def merge(model: "PreTrainedModel") -> None:
    """Folds the active deltas into the weights: the model then runs without any hook.

    The original weights are kept, so `unmerge` restores them bit for bit. Merging twice changes
    nothing.

    Raises:
        NotMergeable: an active delta is no linear change of one linear projection.
        DeltakitError: nothing is attached.
    """
    bank = need_bank(model)
    if bank.merged:
        return
    folds = [_fold(bank.handles[key], node) for key, node in active_nodes(bank).items()]
    take_hooks_off(bank)
    # A rescaled input comes last: it also reaches what was added beside the same linear.
    for fold in sorted(folds, key=lambda fold: fold.handle.tap is Tap.INPUT):
        for name, value in fold.values():
            parameter = model.get_parameter(name)
            bank.merged.setdefault(name, parameter.data)
            parameter.data = value


def unmerge(model: "PreTrainedModel") -> None:
    """Puts the original weights back, bit for bit, and the deltas beside them.

    Raises:
        DeltakitError: nothing is attached.
    """
    bank = need_bank(model)
    if bank.merged:
        reapply(model, bank)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Fold:
    """What becomes of one linear: W <- diag(factor) W + change, or W <- W diag(factor)."""

    handle: Handle
    factor: Tensor | None
    change: Tensor | None

    def values(self) -> Iterator[tuple[str, Tensor]]:
        """The new value of the weight, and of the bias if it changes, by the parameter's name."""
        linear = self.handle.module
        weight = _floating(self.handle, "weight")
        transposed = not isinstance(linear, nn.Linear)  # transformers' Conv1D is (in, out)
        folded = (weight.T if transposed else weight).float().clone()
        if self.handle.tap is Tap.INPUT:
            folded *= 1.0 if self.factor is None else self.factor
        else:
            rows = self._rows(folded)
            rows = rows if self.factor is None else rows * self.factor[:, None]
            folded = self._with_rows(folded, rows if self.change is None else rows + self.change)
        yield f"{self.handle.path}.weight", (folded.T if transposed else folded).to(weight.dtype)
        if self.factor is not None and self.handle.tap is Tap.OUTPUT:
            yield from self._bias(self.factor)

    def _bias(self, factor: Tensor) -> Iterator[tuple[str, Tensor]]:
        if self.handle.module._parameters.get("bias") is None:
            return
        bias = _floating(self.handle, "bias")
        folded = self._with_rows(bias.float(), self._rows(bias.float()) * factor)
        yield f"{self.handle.path}.bias", folded.to(bias.dtype)

    def _rows(self, whole: Tensor) -> Tensor:
        columns = self.handle.columns
        return whole if columns is None else _swap(columns.read(_swap(whole)))

    def _with_rows(self, whole: Tensor, rows: Tensor) -> Tensor:
        columns = self.handle.columns
        return rows if columns is None else _swap(columns.write(_swap(whole), _swap(rows)))


def _swap(tensor: Tensor) -> Tensor:
    """The first axis last, and back; a bias has only one."""
    return tensor.transpose(0, -1)


def _fold(handle: Handle, node: Node) -> _Fold:
    """All deltas at a site read the same h and x, so factors and changes add up apart."""
    leaves = _terms(node)
    if leaves is None or handle.tap not in (Tap.OUTPUT, Tap.INPUT):
        parts = {type(part).__name__ for part in (*node.combiners, *(x.delta for x in node.leaves))}
        raise NotMergeable(
            f"{' over '.join(sorted(parts, reverse=True))} at {handle.key!r} does not fold into a "
            "weight; only a sum of linear changes of a linear projection does, such as LoRA's."
        )
    factors, changes = [], []
    for leaf in leaves:
        delta = leaf.delta
        if isinstance(delta, Scaling) and leaf.insertion is Insertion.SEQUENTIAL:
            factors.append(leaf.scale * (delta.factor().detach().float() - 1))
        elif isinstance(delta, Mergeable) and _beside(handle, leaf):
            changes.append(leaf.scale * delta.weight_change().detach().float())
        else:
            raise NotMergeable(
                f"{type(delta).__name__} at {handle.key!r} does not fold into a weight: it is no "
                "linear change of one linear projection. Activate without it, then merge."
            )
    _check_linear(handle)
    return _Fold(
        handle=handle,
        factor=1 + torch.stack(factors).sum(0) if factors else None,
        change=torch.stack(changes).sum(0) if changes else None,
    )


def _check_linear(handle: Handle) -> None:
    try:
        linear_widths(handle.module)
    except UnknownArchitecture as error:
        raise NotMergeable(f"{handle.path!r} holds no weight to fold into: {error}") from None
    _floating(handle, "weight")


def _beside(handle: Handle, leaf: Leaf) -> bool:
    return leaf.insertion is Insertion.PARALLEL and handle.tap is Tap.OUTPUT


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


def _floating(handle: Handle, name: str) -> nn.Parameter:
    parameter = handle.module.get_parameter(name)
    if not parameter.is_floating_point():
        raise NotMergeable(
            f"{handle.path!r} is quantised ({parameter.dtype}); merge into a floating-point base."
        )
    return parameter
