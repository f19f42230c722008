"""From a composition of names to the node that runs at one site."""

from collections.abc import Callable

from deltakit.core.composition import Composition, Mean, One, PerRow, Stack
from deltakit.core.delta import Inverse
from deltakit.runtime.batch_rows import PerRowNode
from deltakit.runtime.nodes import Node, SequentialNode, SumNode

NodeOf = Callable[[str], Node | None]
"""The node of an attached delta at the site in question; None where it does nothing."""


def compile_composition(composition: Composition, node_of: NodeOf) -> Node | None:
    """The node of a composition at a site; None where none of its deltas does anything."""
    match composition:
        case One(name):
            return node_of(name)
        case Stack(parts):
            nodes = tuple(node for part in parts if (node := compile_composition(part, node_of)))
            return _in_turn(nodes) if nodes else None
        case Mean():
            return _mean(composition, node_of)
        case PerRow():
            return _per_row(composition, node_of)
    raise TypeError(f"{type(composition).__name__} is not a kind of composition.")


def _in_turn(nodes: tuple[Node, ...]) -> Node:
    """One after the other; what undoes changes that were made in turn begins with the last."""
    undo = any(isinstance(leaf.delta, Inverse) for node in nodes for leaf in node.leaves)
    return SequentialNode(nodes[::-1] if undo else nodes)


def _mean(composition: Mean, node_of: NodeOf) -> Node | None:
    pairs = [
        (node, weight)
        for part, weight in zip(composition.parts, composition.weights, strict=True)
        if (node := compile_composition(part, node_of)) is not None
    ]
    return SumNode(*map(tuple, zip(*pairs, strict=True))) if pairs else None


def _per_row(composition: PerRow, node_of: NodeOf) -> Node | None:
    used = dict.fromkeys(row for row in composition.rows if row is not None)
    nodes = {row: node for row in used if (node := compile_composition(row, node_of)) is not None}
    index: dict[Composition | None, int] = {row: place for place, row in enumerate(nodes)}
    if not nodes:
        return None
    return PerRowNode(tuple(nodes.values()), tuple(index.get(row) for row in composition.rows))
