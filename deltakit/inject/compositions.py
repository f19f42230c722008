"""A composition of names as the tables that a pass runs with, and why some cannot run."""

from functools import partial

from torch import nn

from deltakit.core.composition import Composition, PerRow
from deltakit.core.delta import Inverse, ShiftsKeys
from deltakit.core.site import POSITION_KINDS, Handle, HookKind, Site
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import Attachments
from deltakit.inject.build import left_out
from deltakit.inject.places import submodule
from deltakit.runtime.batch_rows import PerRowNode
from deltakit.runtime.compile import compile_composition
from deltakit.runtime.nodes import Node, PlacedDelta, SequentialNode, SumNode
from deltakit.runtime.own_values import Place
from deltakit.runtime.program import Program
from deltakit.runtime.reached import check_steps
from deltakit.runtime.tables import RowHead, Tables


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
            f"changes at {handle.key!r} are positions of a sequence: they follow one another and "
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
