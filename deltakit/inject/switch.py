"""What a model runs with: a composition is put on, taken off, and put on again."""

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from deltakit.arch.resolve import fit_linear
from deltakit.core.composition import Composition, PerRow
from deltakit.core.delta import Regularised
from deltakit.core.site import Handle, Tap
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import Active, Bank, base_parameters, head_names
from deltakit.inject.build import left_out
from deltakit.runtime.batch_rows import Rows
from deltakit.runtime.compile import compile_composition
from deltakit.runtime.hooks import install, install_gates
from deltakit.runtime.nodes import Node
from deltakit.runtime.penalty import install_penalty
from deltakit.runtime.row_heads import install_heads, install_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def current(model: nn.Module, bank: Bank) -> Active | None:
    """What is active, for `reactivate`; None where nothing is."""
    if bank.active is None:
        return None
    folded = {name: _held(model, name, original) for name, original in bank.merged.items()}
    return Active(composition=bank.active, trained=bank.trained, folded=folded)


def deactivate(model: nn.Module, bank: Bank) -> Active | None:
    """The base as it was: hooks off, its own values in its parameters, its own flags on them.

    Returns what was active, for `reactivate`.
    """
    before = current(model, bank)
    take_hooks_off(bank)
    for name, original in bank.merged.items():
        put(model, name, original)
    bank.merged.clear()
    parameters = base_parameters(model)
    for name, (owner, original) in bank.displaced.items():
        parameter = parameters[name]
        bank.attached[owner].own[name] = parameter.data
        parameter.data = original.to(parameter.device, parameter.dtype)
    bank.displaced.clear()
    for name, parameter in parameters.items():
        parameter.requires_grad_(bank.flags[name])
    bank.active = None
    return before


def reactivate(model: "PreTrainedModel", bank: Bank, before: Active | None) -> None:
    """Puts on what `deactivate` took off, merged if it was; nothing, if a part of it is gone."""
    if before is None or not set(before.composition.names) <= set(bank.attached):
        return
    put_on(model, bank, before.composition, before.trained)
    if before.folded:
        take_hooks_off(bank)
    for name, value in before.folded.items():
        bank.merged[name] = put(model, name, value)


def reapply(model: "PreTrainedModel", bank: Bank) -> None:
    """Takes the active composition off and puts it on again, unmerged."""
    before = deactivate(model, bank)
    if before is not None:
        put_on(model, bank, before.composition, before.trained)


def active_nodes(bank: Bank) -> dict[str, Node]:
    """What the active composition does, by the handle's key."""
    return {} if bank.active is None else _nodes(bank, bank.active)


def _held(model: nn.Module, name: str, original: Tensor | nn.Module) -> Tensor | nn.Module:
    """What stands in place of an original."""
    if isinstance(original, nn.Module):
        return model.get_submodule(name)
    return model.get_parameter(name).data


def put(model: nn.Module, name: str, value: Tensor | nn.Module) -> Tensor | nn.Module:
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


def take_hooks_off(bank: Bank) -> None:
    """No delta reaches the forward pass any more."""
    for hook in bank.hooks:
        hook.remove()
    bank.hooks.clear()


# ------------------------------------------------------------------- making a composition run


def _check_owners(model: "PreTrainedModel", bank: Bank, names: tuple[str, ...]) -> None:
    """The head may have several owners (the last one's is used); the base may not."""
    head, owner = head_names(model), dict[str, str]()
    for attached in bank.closure(names):
        for parameter in attached.own:
            if parameter in owner and parameter not in head:
                raise IncompatibleDeltas(
                    f"{owner[parameter]!r} and {attached.name!r} both have values for the base's "
                    f"{parameter!r}; they cannot be active together."
                )
            owner[parameter] = attached.name


def _check_rows(model: "PreTrainedModel", bank: Bank, composition: Composition) -> None:
    """Rows of one batch share the base, so no delta of theirs may have values of its own for it."""
    head = head_names(model)
    for name in composition.names if isinstance(composition, PerRow) else ():
        for parameter in bank.get(name).own.keys() - head:
            raise IncompatibleDeltas(
                f"{name!r} has values of its own for the base's {parameter!r}, which all rows of a "
                "batch share. PerRow takes deltas that leave the base's parameters alone."
            )


def check(model: "PreTrainedModel", bank: Bank, composition: Composition) -> None:
    """Raises `IncompatibleDeltas` if the composition cannot run; changes nothing."""
    _check_owners(model, bank, composition.names)
    _check_rows(model, bank, composition)
    _nodes(bank, composition)


def put_on(
    model: "PreTrainedModel", bank: Bank, composition: Composition, trained: tuple[str, ...]
) -> None:
    """Makes the model run with the composition, and train the deltas called `trained`."""
    nodes = _nodes(bank, composition)
    for key, node in nodes.items():
        bank.hooks.extend(install(bank.handles[key], node))
    penalties = tuple(
        module
        for name in trained
        for _, module in bank.attached[name].modules()
        if isinstance(module, Regularised)
    )
    if penalties:
        bank.hooks.append(install_penalty(model, penalties))
    gates = {leaf.gate for node in nodes.values() for leaf in node.leaves if leaf.gate is not None}
    if gates:
        bank.hooks.append(install_gates(model, tuple(gates)))
    if isinstance(composition, PerRow):
        bank.hooks.append(install_rows(model, len(composition.rows)))
        bank.hooks.extend(install_heads(model, _heads(model, bank, composition)))
    else:
        _take_own_values(model, bank, composition.names)
    _set_flags(model, bank, trained)
    bank.active, bank.trained = composition, trained


def _nodes(bank: Bank, composition: Composition) -> dict[str, Node]:
    """What the composition does, by the handle's key. Raises `IncompatibleDeltas`."""
    nodes = {}
    for key in bank.handles:
        node = compile_composition(composition, partial(bank.node, key=key))
        if node is not None and not left_out(bank.handles[key], bank.dropped):
            _check_joins(bank.handles[key], node)
            nodes[key] = node
    return nodes


def _check_joins(handle: Handle, node: Node) -> None:
    if node.weighs and handle.tap in (Tap.ATTENTION, Tap.SEQUENCE, Tap.NUMBERS):
        raise IncompatibleDeltas(
            f"changes at {handle.key!r} are positions of a sequence: they stand side by side and "
            "cannot be weighed. Use Stack, or leave these deltas out."
        )
    if isinstance(node, Rows) and handle.tap is Tap.SEQUENCE:
        raise IncompatibleDeltas(
            f"PerRow cannot choose at {handle.key!r}: rows of one batch would have sequences of "
            "different lengths. Use a prefix in place of a prompt, or one batch for each."
        )


def _heads(
    model: "PreTrainedModel", bank: Bank, composition: PerRow
) -> list[tuple[dict[str, Tensor], tuple[int, ...]]]:
    """The values that deltas have for the head, and the rows that use them."""
    heads = []
    for row in dict.fromkeys(row for row in composition.rows if row is not None):
        own = {p: value for name in row.names for p, value in bank.attached[name].own.items()}
        values = {p: value.to(model.get_parameter(p)) for p, value in own.items()}
        rows = tuple(index for index, each in enumerate(composition.rows) if each == row)
        heads.append((values, rows))
    return heads


def _take_own_values(model: nn.Module, bank: Bank, names: tuple[str, ...]) -> None:
    parameters = base_parameters(model)
    for name, owner in {p: n for n in names for p in bank.attached[n].own}.items():
        parameter = parameters[name]
        bank.displaced[name] = (owner, parameter.data)
        own = bank.attached[owner].own[name]
        parameter.data = own.to(parameter.device, parameter.dtype)


def _set_flags(model: nn.Module, bank: Bank, trained: tuple[str, ...]) -> None:
    owned = {p for p, (owner, _) in bank.displaced.items() if owner in trained}
    for name, parameter in base_parameters(model).items():
        parameter.requires_grad_(name in owned)
    for attached in bank.attached.values():
        for own in attached.parameters():
            own.requires_grad_(attached.name in trained)
