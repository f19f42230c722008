"""Activation: a composition is made active, paused, and made active again."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from deltakit.core.composition import Composition, PerRow
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import Attachments, Merged
from deltakit.inject.base_names import plain_parameters
from deltakit.inject.compositions import own_parameters, program_of, tables_of
from deltakit.inject.labels import keep_labels, settle_labels
from deltakit.inject.partitions import check_own_values, first_wrapper
from deltakit.inject.places import place_of, set_weight, submodule, use_own
from deltakit.runtime.nodes import Node
from deltakit.runtime.penalty import install_penalty
from deltakit.runtime.program import has_threads
from deltakit.runtime.reached import check_steps
from deltakit.runtime.tables import Tables, upcoming_tables

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
    with_deltas = attachments.active is not None
    if attachments.flags.with_deltas is not with_deltas:
        attachments.flags.change_to(with_deltas, plain_parameters(model, attachments))


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


def _record(attachments: Attachments, composition: Composition, trained: tuple[str, ...]) -> None:
    """Records what is active. What of it is not trained is frozen; other deltas are left alone."""
    for attached in attachments.with_members(composition.names):
        if attached.name in trained:
            attached.thaw()
        else:
            attached.freeze()
    attachments.running.composition, attachments.running.trained = composition, trained
