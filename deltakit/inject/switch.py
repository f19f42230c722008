"""Activation: a composition is made active, paused, and made active again."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from deltakit.core.composition import Composition, PerRow
from deltakit.core.delta import Inverse, ShiftsKeys
from deltakit.core.site import POSITION_KINDS, Handle, HookKind, Site
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import Attachments, Merged, plain_parameters
from deltakit.inject.build import left_out
from deltakit.inject.labels import keep_labels, settle_labels
from deltakit.inject.partitions import check_own_values, first_wrapper
from deltakit.inject.places import place_of, set_weight, submodule, use_own
from deltakit.runtime.batch_rows import PerRowNode
from deltakit.runtime.compile import compile_composition
from deltakit.runtime.nodes import Node, PlacedDelta, SequentialNode, SumNode
from deltakit.runtime.own_values import Place
from deltakit.runtime.penalty import install_penalty
from deltakit.runtime.program import Program, has_threads
from deltakit.runtime.reached import check_steps
from deltakit.runtime.tables import RowHead, Tables, upcoming_tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, eq=False)
class Active:
    """The state that a model runs with.

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
    _check_switch(model, attachments, None)
    before = _deactivate(model, attachments)
    pause = Pause(before=before, then=before)
    try:
        yield pause
        attachments.nodes.clear()
        _deactivate(model, attachments)
        _reactivate(model, attachments, pause.then)
    except BaseException:
        attachments.nodes.clear()
        _deactivate(model, attachments)
        _reactivate(model, attachments, before)
        raise
    finally:
        settle_flags(model, attachments)


def starting(composition: Composition, trained: tuple[str, ...]) -> Active:
    """A composition that is not merged."""
    return Active(composition=composition, trained=trained, merged=None, folded={})


def snapshot_active(model: nn.Module, attachments: Attachments) -> Active | None:
    """The active state, for `Pause.then`; None where nothing is active."""
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


def active_nodes(attachments: Attachments) -> "Mapping[str, Node]":
    """The nodes of this thread's next pass, by the handle's key."""
    return {} if attachments.program is None else upcoming_tables(attachments.program).nodes


def check_reached(attachments: Attachments) -> None:
    """Raises `IncompatibleDeltas` if a module where active deltas act was replaced."""
    if attachments.program is not None:
        check_steps(upcoming_tables(attachments.program).steps)


def _remove_hooks(attachments: Attachments) -> None:
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


def keep_merged(attachments: Attachments) -> None:
    """Makes merged values the base's own, if they were merged to be kept."""
    if attachments.merged is not None and attachments.merged.kept:
        attachments.merged = None
        attachments.running.composition = None
        keep_labels(attachments)


def take_off(model: nn.Module, attachments: Attachments) -> None:
    """Takes hooks and deltas' parameters off; what is active is still recorded."""
    _keep_placed(model, attachments)
    _remove_hooks(attachments)
    if attachments.program is not None:
        attachments.program.switch(model, Tables())
    use_own(model, attachments, {})


def _keep_placed(model: nn.Module, attachments: Attachments) -> None:
    """Before others take the places: checkpointed layers may run again with what is there."""
    program = attachments.program
    if program is None or program.active.own or not program.passes.are_resumed():
        return
    if first_wrapper(_own_places(model, attachments)) is None:
        placed = own_parameters(model, attachments, attachments.active)
        program.keep_placed(placed, plain_parameters(model, attachments).values())


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
        for parameter in attached.own.keys() - attached.head - attached.fresh:
            if parameter in owner:
                raise IncompatibleDeltas(
                    f"{owner[parameter]!r} and {attached.name!r} both have values for the base's "
                    f"{parameter!r}; they cannot be active together."
                )
            owner[parameter] = attached.name


def _check_rows(attachments: Attachments, composition: Composition) -> None:
    """Raises if a row's delta has its own values for the base, which all rows share."""
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
    nodes = _nodes(attachments, composition)
    if attachments.program is not None:
        check_steps(attachments.program.paths.to(nodes))


def _check_switch(
    model: nn.Module, attachments: Attachments, composition: Composition | None
) -> None:
    """Raises `IncompatibleDeltas` where own values cannot be taken off, or put to use."""
    found = [each for each in (attachments.active, composition) if each is not None]
    owners = attachments.owners(tuple(name for each in found for name in each.names))
    modules = (submodule(model, name.rpartition(".")[0]) for name in owners)
    check_own_values(module for module in modules if module is not None)


def _is_shared(model: nn.Module, attachments: Attachments) -> bool:
    """Whether other threads may use other values at the base's places."""
    return has_threads() and first_wrapper(_own_places(model, attachments)) is None


def _own_places(model: nn.Module, attachments: Attachments) -> Iterator[nn.Module]:
    """The modules of all places where any attached delta has parameters of its own."""
    for (name, _), having in attachments.owners_at.items():
        module = submodule(model, name.rpartition(".")[0]) if having else None
        if module is not None:
            yield module


def _start(
    model: "PreTrainedModel",
    attachments: Attachments,
    composition: Composition,
    trained: tuple[str, ...],
) -> None:
    """Makes the model run with the composition, and train the deltas called `trained`."""
    tables = tables_of(model, attachments, composition, shared=_is_shared(model, attachments))
    program_of(model, attachments).switch(model, tables)
    _follow(model, attachments, composition, trained)


def change_to(
    model: "PreTrainedModel",
    attachments: Attachments,
    composition: Composition | None,
    trained: tuple[str, ...],
) -> None:
    """Makes the model run with a composition in one step, from what it runs with.

    Passes of other threads that are running end with what they began with; the next ones begin with
    the composition.
    """
    _check_switch(model, attachments, composition)
    before = snapshot_active(model, attachments)
    try:
        _change_to(model, attachments, composition, trained)
    except BaseException:
        _deactivate(model, attachments)
        _reactivate(model, attachments, before)
        raise
    finally:
        settle_flags(model, attachments)


def _change_to(
    model: "PreTrainedModel",
    attachments: Attachments,
    composition: Composition | None,
    trained: tuple[str, ...],
) -> None:
    program, shared = program_of(model, attachments), _is_shared(model, attachments)
    if shared:
        program.keep_own(own_parameters(model, attachments, attachments.active))
    _keep_placed(model, attachments)
    program.switch(model, tables_of(model, attachments, composition, shared=shared))
    _remove_hooks(attachments)
    attachments.running.composition = None
    if composition is None:
        use_own(model, attachments, {})
    else:
        _follow(model, attachments, composition, trained)
    settle_labels(model, attachments)


@contextlib.contextmanager
def use_in_thread(
    model: nn.Module, attachments: Attachments, composition: Composition | None
) -> Iterator[None]:
    """Inside, passes of this thread run with a composition."""
    _check_switch(model, attachments, composition)
    wrapper = first_wrapper(_own_places(model, attachments))
    if wrapper is not None:
        raise IncompatibleDeltas(
            f"{wrapper.name} holds parameters of the base of which deltas have values of their own "
            "(head, biases, norms or embeddings), so one thread cannot use others than the rest. "
            "Use `activate`."
        )
    program = program_of(model, attachments)
    tables = tables_of(model, attachments, composition, shared=True)
    with program.using(model, tables):
        yield


def _follow(
    model: "PreTrainedModel",
    attachments: Attachments,
    composition: Composition,
    trained: tuple[str, ...],
) -> None:
    """What all threads share follows a switch: penalties, parameters at their places, flags."""
    parts = tuple(m for name in trained for _, m in attachments.attached[name].modules())
    attachments.running.hooks.extend(install_penalty(model, parts))
    program_of(model, attachments).passes.come_last()
    per_row = isinstance(composition, PerRow)
    use_own(model, attachments, {} if per_row else attachments.owners(composition.names))
    _record(attachments, composition, trained)


def program_of(model: nn.Module, attachments: Attachments) -> Program:
    """The program that the model runs by, made where there is none."""
    if attachments.program is None:
        attachments.program = Program(model, attachments.handles)
    return attachments.program


def tables_of(
    model: nn.Module, attachments: Attachments, composition: Composition | None, *, shared: bool
) -> Tables:
    """The tables of passes with a composition. Raises `IncompatibleDeltas`.

    Args:
        model: the model.
        attachments: its record.
        composition: the deltas, and how they act together; None for the plain base.
        shared: whether the parameters at the base's places may be those of something else.
    """
    own = own_parameters(model, attachments, composition) if shared else {}
    if composition is None:
        return Tables(own=own)
    nodes = _nodes(attachments, composition)
    steps = program_of(model, attachments).paths.to(nodes)
    handles = (attachments.handles[key] for key in nodes)
    blocks = frozenset(handle.block for handle in handles if handle.block is not None)
    if not isinstance(composition, PerRow):
        owners = attachments.owners(composition.names).items()
        owns = any(name not in owner.head for name, owner in owners)
        return Tables(nodes=nodes, own=own, steps=steps, owns=owns, blocks=blocks)
    heads = _heads_by_module(model, _heads(attachments, composition))
    rows = len(composition.rows)
    return Tables(nodes=nodes, entries=rows, heads=heads, own=own, steps=steps, blocks=blocks)


def own_parameters(
    model: nn.Module, attachments: Attachments, composition: Composition | None
) -> dict[nn.Module, dict[str, nn.Parameter]]:
    """By module, the parameters of all places where any attached delta has its own."""
    plain = composition is None or isinstance(composition, PerRow)
    owners = {} if composition is None or plain else attachments.owners(composition.names)
    base = attachments.base.tensors()
    found: dict[nn.Module, dict[str, nn.Parameter]] = {}
    for (name, aliases), having in attachments.owners_at.items():
        for alias in aliases if having else ():
            module = submodule(model, alias.rpartition(".")[0])
            if module is None:
                continue
            place = Place(module, alias.rpartition(".")[2])
            own = owners[name].own[name] if name in owners else None
            wanted = own if own is not None else base.get(name, place.parameter)
            found.setdefault(module, {})[place.name] = wanted
    return found


def _heads_by_module(
    model: nn.Module, heads: list[RowHead]
) -> dict[nn.Module, tuple[RowHead, ...]]:
    """The rows' heads by the model's child that has them, named in the child."""
    children = dict.fromkeys(name.partition(".")[0] for places, _ in heads for name in places)
    found: dict[nn.Module, tuple[RowHead, ...]] = {}
    for child in children:
        inside = tuple(
            ({n.partition(".")[2]: p for n, p in places.items() if n.startswith(f"{child}.")}, rows)
            for places, rows in heads
        )
        found[model.get_submodule(child)] = tuple(head for head in inside if head[0])
    return found


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
    if composition in attachments.nodes:
        return attachments.nodes[composition]
    nodes: dict[str, Node] = {}
    for key in _keys(attachments, composition):
        node = compile_composition(composition, partial(attachments.node, key=key))
        if node is not None and not left_out(attachments.handles[key], attachments.dropped):
            _check_joins(attachments.handles[key], node)
            nodes[key] = node
    attachments.nodes[composition] = nodes
    return nodes


def _keys(attachments: Attachments, composition: Composition) -> list[str]:
    """The handles where any delta of the composition does something, in the model's order."""
    parts = attachments.with_members(composition.names)
    order = attachments.order
    return sorted({key for part in parts for key in part.sites()}, key=order.__getitem__)


def _check_joins(handle: Handle, node: Node) -> None:
    if any(isinstance(leaf.delta, Inverse) for leaf in node.leaves) and not _in_turn(node):
        raise IncompatibleDeltas(
            f"the change at {handle.key!r} undoes one that was made to the embeddings, and a sum "
            "or a fusion of several undoes none. Use Stack, or leave all invertible adapters but "
            "one out."
        )
    if handle.site is Site.ATTN_KV:
        _check_counted(handle, node)
    if node.weighs and handle.hook_kind in POSITION_KINDS:
        raise IncompatibleDeltas(
            f"changes at {handle.key!r} are positions of a sequence: they stand side by side and "
            "cannot be weighed. Use Stack, or leave these deltas out."
        )
    if isinstance(node, PerRowNode) and handle.hook_kind is HookKind.INPUT_EMBEDS:
        raise IncompatibleDeltas(
            f"PerRow cannot choose at {handle.key!r}: rows of one batch would have sequences of "
            "different lengths. Use a prefix in place of a prompt, or one batch for each."
        )


def _check_counted(handle: Handle, node: Node) -> None:
    """Raises unless all keys that are added are counted alike, and are as many in each row."""
    counted = {isinstance(leaf.delta, ShiftsKeys) for leaf in node.leaves}
    uneven = isinstance(node, PerRowNode) and len(set(node.lengths)) > 1
    if True in counted and (uneven or False in counted):
        raise IncompatibleDeltas(
            f"a prefix at {handle.key!r} is counted in the positions of keys, which all rows and "
            "deltas share (positions='counted'). Activate such deltas one by one."
        )


def _in_turn(node: Node) -> bool:
    """True if every delta of the node acts alone, or behind another."""
    match node:
        case SequentialNode(parts=parts) | PerRowNode(parts=parts):
            return all(map(_in_turn, parts))
        case SumNode(parts=(part,), weights=None):
            return _in_turn(part)
        case _:
            return isinstance(node, PlacedDelta)


def _heads(attachments: Attachments, composition: PerRow) -> list[RowHead]:
    """Where deltas have their parameters for the head, and the rows that use them."""
    heads: list[RowHead] = []
    for row in dict.fromkeys(row for row in composition.rows if row is not None):
        owners = attachments.owners(row.names)
        places = {name: attached.tree.places[name] for name, attached in owners.items()}
        rows = tuple(index for index, each in enumerate(composition.rows) if each == row)
        heads.append((places, rows))
    return heads
