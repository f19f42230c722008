"""Folding deltas into the base's weights, what that loses, and taking them out bit for bit."""

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from deltakit.errors import NotMergeable
from deltakit.inject.attachments import Attachments, Merged, need_attachments
from deltakit.inject.config_changes import config_changes, unsaid_width
from deltakit.inject.fold import FoldedSites, fold
from deltakit.inject.merge_report import MergeReport
from deltakit.inject.mergeable import change_of, check_own_places, check_untied
from deltakit.inject.places import set_weight
from deltakit.inject.switch import active_nodes, check_reached, reapply, take_off
from deltakit.inject.weight_changes import Change, staged
from deltakit.runtime.nodes import FoldedNode, Node

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    check_own_places(model, attachments)
    nodes = active_nodes(attachments)
    folded = {key: found for key, node in nodes.items() if (found := fold(node)) is not None}
    _check_kept(tuple(folded), keep=keep)
    plain = {key: node for key, node in nodes.items() if key not in folded}
    changes = _changes(model, attachments, plain)
    with _unmerged_on_error(model, attachments):
        merged, report = _write(model, attachments, changes, folded, dequantise=dequantise)
        merged.kept = keep
    if keep:
        _tell_width(model, merged)
    if report.relative > tolerance:
        originals = merged.originals.values()
        rounded = dequantise or all(isinstance(value, nn.Parameter) for value in originals)
        _warn(report, "In float32 it loses nothing" if rounded else _LESS)
    return report


def _changes(model: nn.Module, attachments: Attachments, nodes: Mapping[str, Node]) -> list[Change]:
    """The nodes as changes of weights. Raises `NotMergeable`."""
    handles = attachments.handles
    changes = [change_of(handles, handles[key], node) for key, node in nodes.items()]
    for change in changes:
        check_untied(model, change.handle)
    return changes


def _write(
    model: "PreTrainedModel",
    attachments: Attachments,
    changes: list[Change],
    folded: Mapping[str, FoldedNode],
    *,
    dequantise: bool,
) -> tuple[Merged, MergeReport]:
    """Makes the changes, and puts the folded nodes to use."""
    merged = attachments.merged = _own_folded(model, attachments)
    linears = tuple(
        linear
        for stage in staged(model, changes)
        for linear in stage.write(merged.originals, dequantise=dequantise)
    )
    report = merged.report = MergeReport(linears=linears, folded=tuple(folded))
    merged.undo.extend(config_changes(model, merged.originals, dequantised=dequantise))
    if folded:
        merged.undo.append(FoldedSites(model, attachments, folded))
        merged.undo[-1].apply()
    return merged, report


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
