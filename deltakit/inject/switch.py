"""What a model runs with: a composition is made active, taken off, and made active again."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from deltakit.core.composition import Composition, PerRow
from deltakit.core.site import Handle, HookKind
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import Attachments, Merged, plain_parameters
from deltakit.inject.build import left_out
from deltakit.inject.labels import settle_labels
from deltakit.inject.places import place_of, set_weight, use_own
from deltakit.runtime.batch_rows import PerRowNode
from deltakit.runtime.compile import compile_composition
from deltakit.runtime.hooks import install, install_gates
from deltakit.runtime.nodes import Node
from deltakit.runtime.passes import PassPorts
from deltakit.runtime.penalty import install_penalty
from deltakit.runtime.row_heads import RowHead, install_heads, install_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Active:
    """What a model runs with.

    Attributes:
        composition: the deltas' names, and how they act together.
        trained: which of them are trained.
        merged: what was in the places of the merged values; None where nothing is merged.
        folded: the merged values, by the names in `merged`.
    """

    composition: Composition
    trained: tuple[str, ...]
    merged: Merged | None
    folded: dict[str, nn.Parameter | nn.Module]


@dataclass(kw_only=True, eq=False)
class Pause:
    """A model without its deltas, for a while.

    Attributes:
        before: what it ran with.
        then: what it runs with afterwards; by default what it ran with.
    """

    before: Active | None
    then: Active | None


@contextlib.contextmanager
def paused(model: "PreTrainedModel", attachments: Attachments) -> Iterator[Pause]:
    """Inside, no delta acts: the base's parameters are in their places, and nothing is merged.

    Afterwards the model runs with ``pause.then``. After an exception, in the block or in making
    that active, it runs with what it ran with before. Flags stay as they are.
    """
    before = _deactivate(model, attachments)
    pause = Pause(before=before, then=before)
    try:
        yield pause
        _deactivate(model, attachments)
        _reactivate(model, attachments, pause.then)
    except BaseException:
        _deactivate(model, attachments)
        _reactivate(model, attachments, before)
        raise
    finally:
        settle_flags(model, attachments)


def starting(composition: Composition, trained: tuple[str, ...]) -> Active:
    """A composition that is not merged."""
    return Active(composition=composition, trained=trained, merged=None, folded={})


def snapshot_active(model: nn.Module, attachments: Attachments) -> Active | None:
    """What is active, for `Pause.then`; None where nothing is."""
    running, merged = attachments.running, attachments.merged
    if running.composition is None:
        return None
    names = () if merged is None else merged.originals
    folded = {name: _in_place(model, name, merged.originals[name]) for name in names if merged}
    return Active(
        composition=running.composition, trained=running.trained, merged=merged, folded=folded
    )


def reapply(model: "PreTrainedModel", attachments: Attachments) -> None:
    """Takes the active composition off and makes it active again, unmerged."""
    with paused(model, attachments) as pause:
        if pause.before is not None:
            pause.then = starting(pause.before.composition, pause.before.trained)


def active_nodes(attachments: Attachments) -> dict[str, Node]:
    """What the active composition does, by the handle's key."""
    return {} if attachments.active is None else _nodes(attachments, attachments.active)


def remove_hooks(attachments: Attachments) -> None:
    """No delta reaches the forward pass any more."""
    for hook in reversed(attachments.running.hooks):
        hook.remove()
    attachments.running.hooks.clear()


def _in_place(
    model: nn.Module, name: str, original: nn.Parameter | nn.Module
) -> nn.Parameter | nn.Module:
    """What is in the place of an original."""
    if isinstance(original, nn.Module):
        return model.get_submodule(name)
    return place_of(model, name).parameter


def unfold(model: nn.Module, attachments: Attachments) -> None:
    """Puts the originals of merged values back, if anything is merged."""
    merged, attachments.merged = attachments.merged, None
    if merged is None:
        return
    for name, original in merged.originals.items():
        set_weight(model, name, original)
    for each in reversed(merged.undo):
        each.remove()


def take_off(model: nn.Module, attachments: Attachments) -> None:
    """Takes hooks and deltas' parameters off; what is active is still recorded."""
    remove_hooks(attachments)
    use_own(model, attachments, {})


def _deactivate(model: "PreTrainedModel", attachments: Attachments) -> Active | None:
    before = snapshot_active(model, attachments)
    unfold(model, attachments)
    take_off(model, attachments)
    attachments.running.composition = None
    settle_labels(model, attachments)
    return before


def _reactivate(model: "PreTrainedModel", attachments: Attachments, active: Active | None) -> None:
    """Makes something active, merged if it was; nothing, if a part of it is gone."""
    if active is None or not set(active.composition.names) <= set(attachments.attached):
        return
    if active.merged is None:
        _start(model, attachments, active.composition, active.trained)
        settle_labels(model, attachments)
        return
    attachments.merged = active.merged
    for name, value in active.folded.items():
        set_weight(model, name, value)
    for each in active.merged.undo:
        each.apply()
    _record(attachments, active.composition, active.trained)
    settle_labels(model, attachments)


def settle_flags(model: nn.Module, attachments: Attachments) -> None:
    """Gives the base the flags of the state that it is in."""
    beside_deltas = attachments.active is not None
    if attachments.flags.beside_deltas is not beside_deltas:
        attachments.flags.change_to(beside_deltas, plain_parameters(model, attachments))


# ------------------------------------------------------------------- making a composition run


def _check_owners(attachments: Attachments, names: tuple[str, ...]) -> None:
    """The head may have several owners (the last one's is used); the base may not."""
    owner: dict[str, str] = {}
    for attached in attachments.with_members(names):
        for parameter in attached.own.keys() - attached.head:
            if parameter in owner:
                raise IncompatibleDeltas(
                    f"{owner[parameter]!r} and {attached.name!r} both have values for the base's "
                    f"{parameter!r}; they cannot be active together."
                )
            owner[parameter] = attached.name


def _check_rows(attachments: Attachments, composition: Composition) -> None:
    """Rows of one batch share the base, so no delta of theirs may have its own values for it."""
    for name in composition.names if isinstance(composition, PerRow) else ():
        attached = attachments.get(name)
        for parameter in attached.own.keys() - attached.head:
            raise IncompatibleDeltas(
                f"{name!r} has values of its own for the base's {parameter!r}, which all rows of a "
                "batch share. PerRow takes deltas that leave the base's parameters alone."
            )


def check(attachments: Attachments, composition: Composition) -> None:
    """Raises `IncompatibleDeltas` if the composition cannot run; changes nothing."""
    _check_owners(attachments, composition.names)
    _check_rows(attachments, composition)
    _nodes(attachments, composition)


def _start(
    model: "PreTrainedModel",
    attachments: Attachments,
    composition: Composition,
    trained: tuple[str, ...],
) -> None:
    """Makes the model run with the composition, and train the deltas called `trained`."""
    nodes, hooks = _nodes(attachments, composition), attachments.running.hooks
    passes = attachments.passes = attachments.passes or PassPorts(
        model, attachments.handles.values()
    )
    if nodes:
        hooks.extend(passes.open())
    for key, node in nodes.items():
        hooks.extend(install(attachments.handles[key], node))
    parts = tuple(m for name in trained for _, m in attachments.attached[name].modules())
    hooks.extend(install_penalty(model, parts))
    gates = {leaf.gate for node in nodes.values() for leaf in node.leaves if leaf.gate is not None}
    if gates:
        hooks.append(install_gates(model, tuple(gates)))
    if isinstance(composition, PerRow):
        hooks.extend(install_rows(model, passes, len(composition.rows)))
        hooks.extend(install_heads(model, _heads(attachments, composition)))
    else:
        use_own(model, attachments, attachments.owners(composition.names))
    if nodes:
        hooks.extend(passes.close())
    _record(attachments, composition, trained)


def _record(attachments: Attachments, composition: Composition, trained: tuple[str, ...]) -> None:
    """Records what is active. What of it is not trained is frozen; other deltas are left alone."""
    for attached in attachments.with_members(composition.names):
        if attached.name in trained:
            attached.thaw()
        else:
            attached.freeze()
    attachments.running.composition, attachments.running.trained = composition, trained


def _nodes(attachments: Attachments, composition: Composition) -> dict[str, Node]:
    """What the composition does, by the handle's key. Raises `IncompatibleDeltas`."""
    nodes = {}
    for key in _keys(attachments, composition):
        node = compile_composition(composition, partial(attachments.node, key=key))
        if node is not None and not left_out(attachments.handles[key], attachments.dropped):
            _check_joins(attachments.handles[key], node)
            nodes[key] = node
    return nodes


def _keys(attachments: Attachments, composition: Composition) -> list[str]:
    """The handles where any delta of the composition does something, in the model's order."""
    parts = attachments.with_members(composition.names)
    order = attachments.order
    return sorted({key for part in parts for key in part.sites()}, key=order.__getitem__)


def _check_joins(handle: Handle, node: Node) -> None:
    if node.weighs and handle.hook_kind in (
        HookKind.ATTENTION,
        HookKind.INPUT_EMBEDS,
        HookKind.POSITION_IDS,
    ):
        raise IncompatibleDeltas(
            f"changes at {handle.key!r} are positions of a sequence: they stand side by side and "
            "cannot be weighed. Use Stack, or leave these deltas out."
        )
    if isinstance(node, PerRowNode) and handle.hook_kind is HookKind.INPUT_EMBEDS:
        raise IncompatibleDeltas(
            f"PerRow cannot choose at {handle.key!r}: rows of one batch would have sequences of "
            "different lengths. Use a prefix in place of a prompt, or one batch for each."
        )


def _heads(attachments: Attachments, composition: PerRow) -> list[RowHead]:
    """The parameters that deltas have for the head, and the rows that use them."""
    heads: list[RowHead] = []
    for row in dict.fromkeys(row for row in composition.rows if row is not None):
        owners = attachments.owners(row.names)
        values = {name: attached.own[name] for name, attached in owners.items()}
        rows = tuple(index for index, each in enumerate(composition.rows) if each == row)
        heads.append((values, rows))
    return heads
