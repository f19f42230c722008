"""attach, activate, disabled, detach: what a model becomes, and how it is given back."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from deltakit.arch.resolve import fit_linear, resolve
from deltakit.core.algebra import Composition, One, PerRow
from deltakit.core.compose import Gate, Leaf, Node
from deltakit.core.delta import Delta, Regularised
from deltakit.core.method import CombiningMethod, Method, Placement, Role
from deltakit.core.rows import Rows
from deltakit.core.site import Handle, Site, Tap
from deltakit.errors import IncompatibleDeltas, InvalidConfig, NameInUse, SiteNotFound, unknown
from deltakit.inject.bank import (
    CHILD,
    Active,
    Attached,
    Bank,
    bank_of,
    base_parameters,
    head_names,
    need_bank,
)
from deltakit.inject.ports import (
    install,
    install_gates,
    install_heads,
    install_penalty,
    install_rows,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def attach(
    model: "PreTrainedModel",
    method: Method,
    name: str = "default",
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Attaches a delta to a model in place, makes it the active one and freezes the base.

    The task head (what lies outside ``model.base_model``) stays trainable; each delta has its own
    values of it, starting from the model's.

    Args:
        model: a transformers model. Its class, module names and state-dict keys stay as they are;
            the deltas are its new child module ``deltakit``.
        method: what to attach.
        name: letters, digits, ``-`` and ``_``.
        dtype: of the new parameters; by default what each site computes in.

    Raises:
        UnknownArchitecture: the model's sites are not known.
        SiteNotFound: the method needs a site that the model does not have.
        NameInUse: a delta has this name already.
        InvalidConfig: a bad name, or a method that does not fit the model's width.
        IncompatibleDeltas: members that cannot be composed.
    """
    check_name(name)
    old = bank_of(model)
    bank = old or _new_bank(model)
    if name in bank.attached:
        raise NameInUse(f"a delta called {name!r} is attached already; detach it or take another.")
    before = deactivate(model, bank)
    try:
        bank.add(_build(model, bank, method, name, dtype))
        bank.train(model.training)
        _apply(model, bank, One(name), (name,))
    except BaseException:
        deactivate(model, bank)
        if name in bank.attached:
            bank.remove(name)
        reactivate(model, bank, before)
        raise
    if old is None:
        model.add_module(CHILD, bank)


def activate(
    model: "PreTrainedModel",
    what: str | Composition | None,
    *,
    train: tuple[str, ...] | list[str] | None = None,
) -> None:
    """Makes a delta, or a composition of several, the one that the model runs with.

    Args:
        model: a model with deltas.
        what: a delta's name, a composition (``Stack("a", "b")``), or None for the plain base.
        train: the names to train, of those in `what` and their members; by default all those in
            `what`, while the members of a fusion are frozen.

    Raises:
        UnknownName: a name that nothing attached has, or one to train that is not in `what`.
        IncompatibleDeltas: the deltas train the same parameters of the base.
    """
    bank = need_bank(model)
    composition = One(what) if isinstance(what, str) else what
    names = () if composition is None else composition.names
    taking_part = {attached.name for attached in bank.closure(names)}
    for name in train or ():
        if bank.get(name).name not in taking_part:
            raise unknown("name to train", name, taking_part, hint="It is not in what is active.")
    _check_owners(model, bank, names)
    if composition is not None:
        _check_rows(model, bank, composition)
        _nodes(bank, composition)  # what cannot be composed says so before anything changes
    before = deactivate(model, bank)
    try:
        if composition is not None:
            _apply(model, bank, composition, names if train is None else tuple(train))
    except BaseException:
        deactivate(model, bank)
        reactivate(model, bank, before)
        raise


@contextlib.contextmanager
def disabled(model: "PreTrainedModel") -> Iterator[None]:
    """Inside, the model is the base exactly: no hooks, its own parameters and their flags."""
    bank = need_bank(model)
    before = deactivate(model, bank)
    try:
        yield
    finally:
        # Whatever was attached, activated or detached inside: what was active comes back.
        if bank_of(model) is bank:
            deactivate(model, bank)
            reactivate(model, bank, before)


def detach(model: "PreTrainedModel", name: str | None = None) -> None:
    """Takes one delta, or all, off the model. With the last one gone it is as it was, bit for bit.

    Raises:
        UnknownName: no delta has the name.
        IncompatibleDeltas: another delta is composed of it.
        DeltakitError: nothing is attached.
    """
    bank = need_bank(model)
    names = list(reversed(bank.attached)) if name is None else [name]
    before = deactivate(model, bank)
    try:
        for each in names:
            bank.remove(each)
    finally:
        reactivate(model, bank, before)
    if not bank.attached:
        delattr(model, CHILD)


def current(model: nn.Module, bank: Bank) -> Active | None:
    """What is active, for `reactivate`; None where nothing is."""
    if bank.active is None:
        return None
    parameters = base_parameters(model)
    folded = {name: parameters[name].data for name in bank.merged}
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
    _apply(model, bank, before.composition, before.trained)
    if before.folded:
        take_hooks_off(bank)
    for name, value in before.folded.items():
        bank.merged[name] = put(model, name, value)


def put(model: nn.Module, name: str, value: Tensor) -> Tensor:
    """Gives a parameter of the base another value, of another shape too; returns what it had."""
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


def check_name(name: str) -> None:
    """Raises `InvalidConfig` unless `name` can name a delta."""
    if not _NAME.fullmatch(name):
        raise InvalidConfig(
            f"{name!r} cannot name a delta; use letters, digits, '-' and '_', as in 'my-task'."
        )


# ------------------------------------------------------------------------------ building a delta


def _new_bank(model: "PreTrainedModel") -> Bank:
    flags = {name: p.requires_grad for name, p in base_parameters(model).items()}
    return Bank(resolve(model), flags)


def _build(
    model: "PreTrainedModel", bank: Bank, method: Method, name: str, dtype: torch.dtype | None
) -> Attached:
    attached = Attached(name=name, method=method)
    if isinstance(method, CombiningMethod):
        _build_combiners(bank, method, attached, dtype)
    else:
        _build_leaves(bank, method, attached, dtype)
    attached.own = {
        parameter: model.get_parameter(parameter).detach().clone()
        for parameter in _owned(model, bank, method)
    }
    trains_base = attached.own.keys() - head_names(model)
    if method.role is Role.METHOD and not attached.sites() and not trains_base:
        raise InvalidConfig(
            f"{type(method).__name__} finds nothing to train in this {type(model).__name__}."
        )
    return attached


def _build_leaves(
    bank: Bank, method: Method, attached: Attached, dtype: torch.dtype | None
) -> None:
    gates: dict[int, Gate] = {}
    for placement in method.placements():
        for handle in _handles(bank, placement):
            up_to = placement.drop_up_to
            leaf = Leaf(
                _make(placement, handle, dtype),
                placement.insertion,
                placement.scale,
                gate=gates.setdefault(up_to, Gate(up_to)) if up_to else None,
                layer=handle.layer,
            )
            attached.leaves[handle.key] = (*attached.leaves.get(handle.key, ()), leaf)


def _handles(bank: Bank, placement: Placement) -> list[Handle]:
    found = [handle for handle in bank.handles.values() if handle.site is placement.site]
    if not found and not placement.optional:
        sites = sorted({handle.site.value for handle in bank.handles.values()})
        raise SiteNotFound(
            f"this model has no site {placement.site.value!r}{_why(placement.site)}. It has: "
            f"{', '.join(sites)}. Take a method whose sites are among these."
        )
    check_layers(bank, {*placement.omitted, placement.drop_up_to - 1} - {-1})
    return [handle for handle in found if not left_out(handle, placement.omitted)]


def left_out(handle: Handle, layers: frozenset[int]) -> bool:
    """Whether the handle is in one of `layers`; the sequence of tokens is in none."""
    return handle.layer in layers and handle.tap is not Tap.SEQUENCE


def check_layers(bank: Bank, layers: Iterable[int]) -> None:
    """Raises `InvalidConfig` unless some stack of the model has every one of `layers`."""
    depth = 1 + max(handle.layer for handle in bank.handles.values())
    for layer in sorted(layers):
        if not 0 <= layer < depth:
            raise InvalidConfig(
                f"layer {layer} cannot be dropped: this model has layers 0 to {depth - 1}. "
                "Name some of those."
            )


def _why(site: Site) -> str:
    """What a site takes that not every architecture has."""
    match site:
        case Site.ATTN_KV:
            return ": its attention does not call transformers' attention interface"
        case Site.TOKENS:
            return ": no place for further tokens is known in it"
        case _:
            return ""


def _make(placement: Placement, handle: Handle, dtype: torch.dtype | None) -> Delta:
    with torch.device(handle.device):
        return placement.form(handle).to(dtype or handle.dtype)


def _build_combiners(
    bank: Bank, method: CombiningMethod, attached: Attached, dtype: torch.dtype | None
) -> None:
    kind = type(method).__name__
    if not method.names:
        raise InvalidConfig(
            f"{kind} needs the names of attached deltas, for example {kind}('imdb', 'news'). "
            f"Attached: {', '.join(bank.attached) or 'none'}."
        )
    members = [bank.get(name) for name in method.names]
    for member in members:
        if member.combiners or not member.leaves:
            raise IncompatibleDeltas(
                f"{kind} cannot have {member.name!r} as a member: a "
                f"{type(member.method).__name__} proposes no change of its own at any site."
            )
        if set(member.leaves) != set(members[0].leaves):
            other = sorted(set(member.leaves) ^ set(members[0].leaves))[0]
            raise IncompatibleDeltas(
                f"{kind} needs members at the same sites, but {members[0].name!r} and "
                f"{member.name!r} differ at {other!r}. Fuse deltas of one placement."
            )
    attached.members = method.names
    for key in members[0].leaves:
        handle = bank.handles[key]
        if handle.tap in (Tap.ATTENTION, Tap.SEQUENCE):
            raise IncompatibleDeltas(
                f"{kind} weighs changes, and those at {key!r} are positions of a sequence, which "
                f"cannot be weighed. Members with {handle.site.value!r} cannot be fused."
            )
        with torch.device(handle.device):
            combiner = method.combiner(handle, method.names)
        attached.combiners[key] = combiner.to(dtype or handle.dtype)


def _owned(model: "PreTrainedModel", bank: Bank, method: Method) -> Iterator[str]:
    """The parameters of the base and the head of which the delta has values of its own."""
    head = head_names(model)
    for name, parameter in base_parameters(model).items():
        owner = model.get_submodule(name.rpartition(".")[0])
        if name in head:
            if bank.flags[name]:
                yield name
        elif method.trains(name, owner):
            if not parameter.is_floating_point():
                raise IncompatibleDeltas(
                    f"{type(method).__name__} trains {name!r}, which is quantised "
                    f"({parameter.dtype}). Load the base in a floating-point dtype."
                )
            yield name


# ----------------------------------------------------------------------- making a composition run


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


def _apply(
    model: "PreTrainedModel", bank: Bank, composition: Composition, trained: tuple[str, ...]
) -> None:
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


def active_nodes(bank: Bank) -> dict[str, Node]:
    """What the active composition does, by the handle's key."""
    return {} if bank.active is None else _nodes(bank, bank.active)


def reapply(model: "PreTrainedModel", bank: Bank) -> None:
    """Takes the active composition off and puts it on again, unmerged."""
    before = deactivate(model, bank)
    if before is not None:
        _apply(model, bank, before.composition, before.trained)


def _nodes(bank: Bank, composition: Composition) -> dict[str, Node]:
    """What the composition does, by the handle's key. Raises `IncompatibleDeltas`."""
    nodes = {}
    for key in bank.handles:
        node = composition.node(partial(bank.node, key=key))
        if node is not None and not left_out(bank.handles[key], bank.dropped):
            _check_joins(bank.handles[key], node)
            nodes[key] = node
    return nodes


def _check_joins(handle: Handle, node: Node) -> None:
    if node.weighs and handle.tap in (Tap.ATTENTION, Tap.SEQUENCE):
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
