"""Changing what is attached: dropping layers and members, and what only training needs."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from deltakit.core.delta import Reparametrised
from deltakit.errors import IncompatibleDeltas, InvalidConfig
from deltakit.inject.attachments import Attached, need_attachments
from deltakit.inject.build import check_layers
from deltakit.inject.partitions import check_whole
from deltakit.inject.switch import paused, reapply
from deltakit.runtime.nodes import PlacedDelta

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def drop(model: "PreTrainedModel", *, first: int = 0, layers: int | Iterable[int] = ()) -> None:
    """From now on, some layers run without deltas, whatever is active (Rücklé et al. 2021).

    The deltas stay attached: ``drop(model)`` brings all of them back, and saving is not affected.

    Args:
        model: a model with deltas.
        first: how many of the lowest layers, in every stack.
        layers: further layers, by their index.

    Raises:
        InvalidConfig: a layer that the model does not have.
        DeltakitError: nothing is attached, or the deltas are merged.
    """
    attachments = need_attachments(model)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise InvalidConfig(f"drop(first={first!r}): give a whole number of layers, zero or above.")
    further = (layers,) if isinstance(layers, int) else tuple(layers)
    dropped = frozenset((*range(first), *further))
    check_layers(attachments, dropped)
    if attachments.merged:
        raise InvalidConfig("the deltas are merged into the weights; unmerge, then drop layers.")
    attachments.running.dropped = dropped
    reapply(model, attachments)


@torch.inference_mode(False)  # what is made in inference mode cannot be trained
def deploy(model: "PreTrainedModel", name: str = "default") -> None:
    """Turns a delta into what is kept when training is over.

    A reparametrised prefix becomes plain keys and values; what has no such part stays as it is.
    Outputs are the same up to rounding. Save before, if training is to go on from there.

    Raises:
        UnknownName: no delta has the name.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    attached = attachments.get(name)
    check_whole(model, "deploy")
    with paused(model, attachments):
        attached.method = attached.method.deployed()
        attached.leaves = {
            key: tuple(_deployed(leaf) for leaf in leaves)
            for key, leaves in attached.leaves.items()
        }
        attachments.add(attached)


def prune(
    model: "PreTrainedModel",
    usage: Mapping[str, Mapping[str, float]],
    name: str = "default",
    *,
    keep: int,
) -> None:
    """Leaves at each site of a fusion its most used members alone (Rücklé et al. 2021, §4).

    ::

        with dk.fusion_attention(model) as seen:
            model(**batch)
        dk.prune(model, seen.mean(), name="fused", keep=2)

    Sites may keep different members; a member that no site keeps can be detached. The fusion's
    matrices do not depend on the number of members, so they stay as they are.

    Args:
        model: a model with deltas.
        usage: by site and member, how much it is used.
        name: of the fusion.
        keep: how many members are left at each site.

    Raises:
        UnknownName: no delta has the name.
        IncompatibleDeltas: the delta of that name combines no others.
        InvalidConfig: a number below one or above that of the members, or a site or a member that
            `usage` lacks.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    attached = attachments.get(name)
    if not attached.combiners:
        raise IncompatibleDeltas(
            f"{name!r} is not a fusion ({type(attached.method).__name__}), so it has no members to "
            "prune."
        )
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 1:
        raise InvalidConfig(f"prune(keep={keep!r}): give a whole number of members, one or above.")
    kept = {key: _most_used(attached, key, usage, keep) for key in attached.combiners}
    with paused(model, attachments):
        attached.keep(kept)


@contextlib.contextmanager
def pruned(
    model: "PreTrainedModel",
    usage: Mapping[str, Mapping[str, float]],
    name: str = "default",
    *,
    keep: int,
) -> Iterator[None]:
    """Inside, the fusion is as `prune` leaves it; after, it has its members again."""
    attachments = need_attachments(model)
    attached = attachments.get(name)
    method, members, kept = attached.method, attached.members, attached.kept
    prune(model, usage, name, keep=keep)
    try:
        yield
    finally:
        with paused(model, attachments):
            attached.method, attached.members = method, members
            attached.keep(dict.fromkeys(attached.combiners, members) | kept)


def _most_used(
    attached: Attached, key: str, usage: Mapping[str, Mapping[str, float]], keep: int
) -> tuple[str, ...]:
    members = attached.members_at(key)
    if keep > len(members):
        raise InvalidConfig(
            f"prune(keep={keep}): {attached.name!r} has {len(members)} members at {key!r}: "
            f"{', '.join(members)}."
        )
    used = usage.get(key, {})
    missing = [member for member in members if member not in used]
    if missing:
        raise InvalidConfig(
            f"usage says nothing of {', '.join(map(repr, missing))} at {key!r}. Take it from "
            f"fusion_attention while {attached.name!r} is active."
        )
    best = set(sorted(members, key=lambda member: -used[member])[:keep])
    return tuple(member for member in members if member in best)


def _deployed(leaf: PlacedDelta) -> PlacedDelta:
    if not isinstance(leaf.delta, Reparametrised):
        return leaf
    trained = any(parameter.requires_grad for parameter in leaf.delta.parameters())
    return replace(leaf, delta=leaf.delta.deployed().requires_grad_(trained))
