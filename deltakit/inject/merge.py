"""Folding deltas into the base's weights, and taking them out again bit for bit."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deltakit.arch.resolve import linear_widths
from deltakit.core.compose import Leaf, Node, Total
from deltakit.core.delta import Mergeable
from deltakit.core.site import Handle, Insertion, Tap
from deltakit.errors import NotMergeable
from deltakit.inject.attach import active_nodes, reapply
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
    nodes = active_nodes(bank)
    changes = [_change(bank.handles[key], node) for key, node in nodes.items()]
    for hook in bank.hooks:
        hook.remove()
    bank.hooks.clear()
    for handle, change in changes:
        weight = _weight(handle)
        bank.merged.setdefault(f"{handle.path}.weight", weight.data)
        weight.data = _added(handle, weight.data, change)


def unmerge(model: "PreTrainedModel") -> None:
    """Puts the original weights back, bit for bit, and the deltas beside them.

    Raises:
        DeltakitError: nothing is attached.
    """
    bank = need_bank(model)
    if bank.merged:
        reapply(model, bank)


def _change(handle: Handle, node: Node) -> tuple[Handle, Tensor]:
    leaves = _terms(node)
    if leaves is None or handle.tap is not Tap.OUTPUT:
        raise NotMergeable(
            f"what is active at {handle.key!r} does not fold into a weight; only a sum of linear "
            "changes beside a linear projection does, such as LoRA's."
        )
    parts = []
    for leaf in leaves:
        if not isinstance(leaf.delta, Mergeable) or leaf.insertion is not Insertion.PARALLEL:
            raise NotMergeable(
                f"{type(leaf.delta).__name__} at {handle.key!r} does not fold into a weight: it is "
                "no linear change beside one linear projection. Activate without it, then merge."
            )
        parts.append(leaf.scale * leaf.delta.weight_change().detach().float())
    return handle, torch.stack(parts).sum(0)


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


def _weight(handle: Handle) -> nn.Parameter:
    linear_widths(handle.module)
    weight = handle.module.get_parameter("weight")
    if not weight.is_floating_point():
        raise NotMergeable(
            f"{handle.path!r} is quantised ({weight.dtype}); merge into a floating-point base."
        )
    return weight


def _added(handle: Handle, weight: Tensor, change: Tensor) -> Tensor:
    """weight + change, computed in fp32, in the weight's layout and dtype."""
    transposed = not isinstance(handle.module, nn.Linear)  # transformers' Conv1D is (in, out)
    first, end = handle.columns or (0, handle.d_out)
    summed = weight.float().clone()
    rows = summed.T if transposed else summed
    rows[first:end] += change.to(summed.device)
    return summed.to(weight.dtype)
