"""What a model runs with: a composition is put on, taken off, and put on again."""

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deltakit.arch.resolve import fit_linear
from deltakit.core.composition import Composition, PerRow
from deltakit.core.site import Handle, HookKind
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import Active, Attachments, base_parameters, head_names
from deltakit.inject.build import left_out
from deltakit.runtime.batch_rows import PerRowNode
from deltakit.runtime.compile import compile_composition
from deltakit.runtime.hooks import install, install_gates
from deltakit.runtime.nodes import Node
from deltakit.runtime.passes import PassPorts
from deltakit.runtime.penalty import install_penalty
from deltakit.runtime.row_heads import install_heads, install_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def snapshot_active(model: nn.Module, attachments: Attachments) -> Active | None:
    """What is active, for `reactivate`; None where nothing is."""
    if attachments.active is None:
        return None
    folded = {name: _held(model, name, original) for name, original in attachments.merged.items()}
    return Active(composition=attachments.active, trained=attachments.trained, folded=folded)


def deactivate(model: nn.Module, attachments: Attachments) -> Active | None:
    """The base as it was: hooks off, its own values in its parameters, its own flags on them.

    Returns what was active, for `reactivate`.
    """
    before = snapshot_active(model, attachments)
    remove_hooks(attachments)
    for name, original in attachments.merged.items():
        set_weight(model, name, original)
    attachments.merged.clear()
    parameters = base_parameters(model)
    for name, (owner, original) in attachments.displaced.items():
        parameter = parameters[name]
        attachments.attached[owner].own[name] = parameter.data
        parameter.data = original.to(parameter.device, parameter.dtype)
    attachments.displaced.clear()
    for name, parameter in parameters.items():
        parameter.requires_grad_(attachments.flags[name])
    attachments.active = None
    return before


def reactivate(model: "PreTrainedModel", attachments: Attachments, before: Active | None) -> None:
    """Puts on what `deactivate` took off, merged if it was; nothing, if a part of it is gone."""
    if before is None or not set(before.composition.names) <= set(attachments.attached):
        return
    switch_to(model, attachments, before.composition, before.trained)
    if before.folded:
        remove_hooks(attachments)
    for name, value in before.folded.items():
        attachments.merged[name] = set_weight(model, name, value)


def reapply(model: "PreTrainedModel", attachments: Attachments) -> None:
    """Takes the active composition off and puts it on again, unmerged."""
    before = deactivate(model, attachments)
    if before is not None:
        switch_to(model, attachments, before.composition, before.trained)


def active_nodes(attachments: Attachments) -> dict[str, Node]:
    """What the active composition does, by the handle's key."""
    return {} if attachments.active is None else _nodes(attachments, attachments.active)


def _held(model: nn.Module, name: str, original: Tensor | nn.Module) -> Tensor | nn.Module:
    """What stands in place of an original."""
    if isinstance(original, nn.Module):
        return model.get_submodule(name)
    return model.get_parameter(name).data


def set_weight(model: nn.Module, name: str, value: Tensor | nn.Module) -> Tensor | nn.Module:
    """Gives a parameter of the base another value, or a linear's place to another; returns it.

    Both may be of another shape.
    """
    if isinstance(value, nn.Module):
        old = model.get_submodule(name)
        device = old.get_parameter("weight").device
        if value.get_parameter("weight").device != device:
            value.to(device)
        model.set_submodule(name, value.train(old.training))
        return old
    parameter = model.get_parameter(name)
    before = parameter.data
    parameter.data = value.to(parameter.device, parameter.dtype)
    if value.shape != before.shape:
        fit_linear(model.get_submodule(name.rpartition(".")[0]))
    return before


def remove_hooks(attachments: Attachments) -> None:
    """No delta reaches the forward pass any more."""
    for hook in attachments.hooks:
        hook.remove()
    attachments.hooks.clear()


# ------------------------------------------------------------------- making a composition run


def _check_owners(
    model: "PreTrainedModel", attachments: Attachments, names: tuple[str, ...]
) -> None:
    """The head may have several owners (the last one's is used); the base may not."""
    head, owner = head_names(model), dict[str, str]()
    for attached in attachments.with_members(names):
        for parameter in attached.own:
            if parameter in owner and parameter not in head:
                raise IncompatibleDeltas(
                    f"{owner[parameter]!r} and {attached.name!r} both have values for the base's "
                    f"{parameter!r}; they cannot be active together."
                )
            owner[parameter] = attached.name


def _check_rows(
    model: "PreTrainedModel", attachments: Attachments, composition: Composition
) -> None:
    """Rows of one batch share the base, so no delta of theirs may have its own values for it."""
    head = head_names(model)
    for name in composition.names if isinstance(composition, PerRow) else ():
        for parameter in attachments.get(name).own.keys() - head:
            raise IncompatibleDeltas(
                f"{name!r} has values of its own for the base's {parameter!r}, which all rows of a "
                "batch share. PerRow takes deltas that leave the base's parameters alone."
            )


def check(model: "PreTrainedModel", attachments: Attachments, composition: Composition) -> None:
    """Raises `IncompatibleDeltas` if the composition cannot run; changes nothing."""
    _check_owners(model, attachments, composition.names)
    _check_rows(model, attachments, composition)
    _nodes(attachments, composition)


def switch_to(
    model: "PreTrainedModel",
    attachments: Attachments,
    composition: Composition,
    trained: tuple[str, ...],
) -> None:
    """Makes the model run with the composition, and train the deltas called `trained`."""
    nodes = _nodes(attachments, composition)
    if attachments.passes is None:
        attachments.passes = PassPorts(model, attachments.handles.values())
    if nodes:
        attachments.hooks.extend(attachments.passes.open())
    for key, node in nodes.items():
        attachments.hooks.extend(install(attachments.handles[key], node))
    parts = tuple(m for name in trained for _, m in attachments.attached[name].modules())
    attachments.hooks.extend(install_penalty(model, parts))
    gates = {leaf.gate for node in nodes.values() for leaf in node.leaves if leaf.gate is not None}
    if gates:
        attachments.hooks.append(install_gates(model, tuple(gates)))
    if isinstance(composition, PerRow):
        entries = len(composition.rows)
        attachments.hooks.extend(install_rows(model, attachments.passes, entries))
        attachments.hooks.extend(install_heads(model, _heads(model, attachments, composition)))
    else:
        _take_own_values(model, attachments, composition.names)
    if nodes:
        attachments.hooks.extend(attachments.passes.close())
    _set_flags(model, attachments, trained)
    attachments.active, attachments.trained = composition, trained


def _nodes(attachments: Attachments, composition: Composition) -> dict[str, Node]:
    """What the composition does, by the handle's key. Raises `IncompatibleDeltas`."""
    nodes = {}
    for key in attachments.handles:
        node = compile_composition(composition, partial(attachments.node, key=key))
        if node is not None and not left_out(attachments.handles[key], attachments.dropped):
            _check_joins(attachments.handles[key], node)
            nodes[key] = node
    return nodes


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


def _heads(
    model: "PreTrainedModel", attachments: Attachments, composition: PerRow
) -> list[tuple[dict[str, Tensor], tuple[int, ...]]]:
    """The values that deltas have for the head, and the rows that use them."""
    heads = []
    for row in dict.fromkeys(row for row in composition.rows if row is not None):
        own = {
            p: value for name in row.names for p, value in attachments.attached[name].own.items()
        }
        values = {p: value.to(model.get_parameter(p)) for p, value in own.items()}
        rows = tuple(index for index, each in enumerate(composition.rows) if each == row)
        heads.append((values, rows))
    return heads


def _take_own_values(model: nn.Module, attachments: Attachments, names: tuple[str, ...]) -> None:
    parameters = base_parameters(model)
    for name, owner in {p: n for n in names for p in attachments.attached[n].own}.items():
        parameter = parameters[name]
        attachments.displaced[name] = (owner, parameter.data)
        own = attachments.attached[owner].own[name]
        parameter.data = own.to(parameter.device, parameter.dtype)


def _set_flags(model: nn.Module, attachments: Attachments, trained: tuple[str, ...]) -> None:
    owned = {p for p, (owner, _) in attachments.displaced.items() if owner in trained}
    for name, parameter in base_parameters(model).items():
        parameter.requires_grad_(name in owned)
    for attached in attachments.attached.values():
        for own in attached.parameters():
            own.requires_grad_(attached.name in trained)
