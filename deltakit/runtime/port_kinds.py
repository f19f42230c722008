"""Kinds of ports: a change is added to h, or adds positions to those of the sequence."""

from abc import ABC
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from deltakit.core.site import Handle
from deltakit.runtime.batch_rows import PerRowNode, change_of_rows
from deltakit.runtime.nodes import Node, Port, Signal
from deltakit.runtime.passes import Owner, current_pass
from deltakit.runtime.tables import tables_of


class SitePort:
    """One site of one model, whose node is looked up in what the running pass runs with."""

    def __init__(self, owner: Owner, handle: Handle) -> None:
        self.owner = owner
        self.key = handle.key

    def find(self) -> Node | None:
        """The node that takes part in the running pass, or None."""
        node = tables_of(self.owner).nodes.get(self.key)
        return node if node is not None and node.present else None


class AddingPort(Port, ABC):
    """A site whose changes are added: h <- h + Δh."""

    def join(self, changes: Sequence[Tensor]) -> Tensor:
        return sum(changes[1:], changes[0])

    def rows(self, node: Node, signal: Signal) -> Tensor:
        return _with_rows(node, signal, torch.zeros_like(signal.stream), self)

    def add_rows(self, node: Node, signal: Signal) -> Tensor:
        """The stream with the change of `rows` added to it; rows without a delta are not read."""
        return _with_rows(node, signal, signal.stream, self)


def _with_rows(node: Node, signal: Signal, total: Tensor, port: Port) -> Tensor:
    """`total`, of the shape of the stream, with the rows' changes added to it."""
    assert isinstance(node, PerRowNode)
    counts = current_pass().rows
    rows = len(node.choice) if counts is None else counts.whole()
    if total.ndim == 2 and total.shape[0] > rows:
        # Some models run their feed-forward on (rows · tokens, d).
        split = Signal(*(t.unflatten(0, (rows, -1)) for t in signal[:3]))
        return _with_rows(node, split, total.unflatten(0, (rows, -1)), port).flatten(0, 1)
    node, given = node.fitted(total.shape[0]), total
    for group in node.groups():
        change = change_of_rows(node, group, signal, port)
        if group.whole:
            return total + change
        index = node.index(group.rows, total.device)
        add = total.index_add if total is given else total.index_add_  # its own from then on
        total = add(0, index, change)
    return total


class PositionsPort(Port, ABC):
    """A site whose changes are positions in addition to its own, ``(..., l, d)``: they line up.

    A softmax over the longer sequence is what composes them with the rest, so a change takes its
    share of the attention (He et al. 2022, eq. 7: h <- (1 - λ) h + λ Δh) and cannot be weighed.
    """

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        del change
        return signal

    def join(self, changes: Sequence[Tensor]) -> Tensor:
        return torch.cat(_alike(changes), dim=-2)

    def rows(self, node: Node, signal: Signal) -> Tensor:
        assert isinstance(node, PerRowNode)
        longest = max(node.lengths)
        changes = [part.change(signal, self) for part in node.parts if part.present]
        padded = [F.pad(c, (0, 0, 0, longest - c.shape[-2])) for c in _alike(changes)]
        stacked = torch.stack([*padded, torch.zeros_like(padded[0])], dim=-3)
        present = [index for index, part in enumerate(node.parts) if part.present]
        chosen = tuple(present.index(c) if c in present else len(present) for c in node.choice)
        index = node.index(chosen, stacked.device)
        if stacked.ndim == 5:  # by row already: row i of the part that row i has
            rows = torch.arange(len(chosen), device=stacked.device)
            return stacked[:, rows, index]
        return stacked.index_select(-3, index)


def _alike(changes: Sequence[Tensor]) -> list[Tensor]:
    """Keys and values of several deltas, all by row if some are: ``(2, rows, l, d_kv)``."""
    rows = next((change.shape[1] for change in changes if change.ndim == 4), None)
    if rows is None:
        return list(changes)
    return [c if c.ndim == 4 else c.unsqueeze(1).expand(-1, rows, -1, -1) for c in changes]
