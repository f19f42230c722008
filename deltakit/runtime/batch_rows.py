"""A batch whose rows use different deltas."""

import itertools
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from deltakit.core.delta import Attending, AuxiliaryLoss, Combiner, Reads, SharesModule
from deltakit.runtime.generation import kept_values
from deltakit.runtime.nodes import Node, PlacedDelta, Port, Signal
from deltakit.runtime.own_values import Place, parameter_places
from deltakit.runtime.passes import current_pass
from deltakit.runtime.row_counts import fitted
from deltakit.runtime.twins import twin


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """Rows that are computed together.

    Attributes:
        rows: their indices.
        parts: a part for each row, or one for each run of rows that follow one another.
        whole: whether they are all rows of the batch, in order.
    """

    rows: tuple[int, ...]
    parts: tuple[Node, ...]
    whole: bool


@dataclass(frozen=True, eq=False)
class PerRowNode(Node):
    """For each row one of `parts`, by its index, or None."""

    parts: tuple[Node, ...]
    choice: tuple[int | None, ...]
    gated: bool = field(init=False)
    _leaves: tuple[PlacedDelta, ...] = field(init=False)
    _groups: dict[Any, list[RowGroup]] = field(default_factory=dict)
    _indices: dict[Any, Tensor] = field(default_factory=dict)
    _scales: dict[Any, Tensor] = field(default_factory=dict)
    _places: dict[Any, list[dict[str, Place]]] = field(default_factory=dict)
    _fitted: dict[int, "PerRowNode"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        leaves = tuple(leaf for part in self.parts for leaf in part.leaves)
        object.__setattr__(self, "_leaves", leaves)
        object.__setattr__(self, "gated", any(leaf.gate is not None for leaf in leaves))

    def change(self, signal: Signal, port: Port) -> Tensor:
        return port.rows(self, signal)

    def applied(self, signal: Signal, port: Port) -> Tensor:
        return port.add_rows(self, signal)

    def groups(self) -> list[RowGroup]:
        """The rows that are computed together, of the parts that take part in this pass."""
        present = tuple(part.present for part in self.parts) if self.gated else ()
        if present not in self._groups:
            found: dict[Any, list[int]] = {}
            for row, chosen in enumerate(self.choice):
                if chosen is not None and (not present or present[chosen]):
                    found.setdefault(_kind(self.parts[chosen], chosen), []).append(row)
            self._groups[present] = [self._group(tuple(rows)) for rows in found.values()]
        return self._groups[present]

    def _group(self, rows: tuple[int, ...]) -> RowGroup:
        chosen = [self.choice[row] for row in rows]
        parts = tuple(self.parts[each] for each in chosen if each is not None)
        runs = [len(tuple(run)) for _, run in itertools.groupby(chosen)]
        if len(set(runs)) == 1:
            parts = parts[:: runs[0]]
        return RowGroup(rows=rows, parts=parts, whole=rows == tuple(range(len(self.choice))))

    def scales(self, leaves: tuple[PlacedDelta, ...], like: Tensor) -> Tensor:
        """The leaves' scales, ``(leaves,)``, of the dtype and device of `like`."""
        key = (leaves, like.dtype, like.device)
        if key not in self._scales:
            scales = [leaf.scale for leaf in leaves]
            self._scales[key] = torch.tensor(scales, dtype=like.dtype, device=like.device)
        return self._scales[key]

    def index(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        """`rows` as a tensor, made once."""
        key = (rows, device)
        if key not in self._indices:
            self._indices[key] = torch.tensor(rows, device=device)
        return self._indices[key]

    def take(self, tensor: Tensor, group: RowGroup) -> Tensor:
        """A group's rows of a tensor, without a copy where they follow one another."""
        first, last = group.rows[0], group.rows[-1]
        if last - first + 1 == len(group.rows):
            return tensor[first : last + 1]
        return tensor.index_select(0, self.index(group.rows, tensor.device))

    def fitted(self, rows: int) -> "PerRowNode":
        """The node with an entry for each of the rows that a module is given."""
        choice = fitted(self.choice, rows, current_pass().rows)
        if choice == self.choice:
            return self
        if self._fitted.get(rows) is None or self._fitted[rows].choice != choice:
            self._fitted[rows] = PerRowNode(self.parts, choice)
        return self._fitted[rows]

    def stacked(self, leaves: tuple[PlacedDelta, ...]) -> dict[str, Tensor]:
        """Each parameter of the rows' forms, ``(rows, ...)``.

        While `generate` runs without gradients, they are kept.
        """
        kept = None if torch.is_grad_enabled() else kept_values()
        found = {} if kept is None else kept
        if leaves not in self._places:
            self._places[leaves] = [parameter_places(leaf.delta) for leaf in leaves]
        own = self._places[leaves]
        for name in own[0]:
            if (leaves, name) not in found:
                found[leaves, name] = torch.stack([each[name].parameter for each in own])
        return {name: found[leaves, name] for name in own[0]}

    @property
    def lengths(self) -> tuple[int, ...]:
        """At a site of positions: how many each row has."""
        return tuple(
            0 if chosen is None or not self.parts[chosen].present else self.parts[chosen].length
            for chosen in self.choice
        )

    def visible(self, device: torch.device) -> Tensor | None:
        longest = max(self.lengths)
        if min(self.lengths) == longest:
            return None
        return torch.arange(longest, device=device) < self.index(self.lengths, device)[:, None]

    @property
    def leaves(self) -> tuple[PlacedDelta, ...]:
        return self._leaves

    @property
    def present(self) -> bool:
        return not self.gated or super().present

    @property
    def combiners(self) -> tuple[Combiner, ...]:
        return tuple(combiner for part in self.parts for combiner in part.combiners)

    @property
    def weighs(self) -> bool:
        return any(part.weighs for part in self.parts)


def change_of_rows(node: PerRowNode, group: RowGroup, signal: Signal, port: Port) -> Tensor:
    """Δh of a group's rows, given the signal of all rows."""
    first = group.parts[0]
    if not isinstance(first, PlacedDelta) or first.delta.reads != (Reads.SOURCE,):
        signal = signal if group.whole else _rows_of(signal, node, group)
        return _of_parts(node, group, signal, port)
    (x,) = first.inputs(signal)  # what the other rows are given is not read
    x = x if group.whole else node.take(x, group)
    return _of_inputs(node, group, x).to(signal.stream.dtype)


def _of_parts(node: PerRowNode, group: RowGroup, signal: Signal, port: Port) -> Tensor:
    first = group.parts[0]
    if len(group.parts) == 1 or not isinstance(first, PlacedDelta):
        return first.change(signal, port)
    return _of_inputs(node, group, *first.inputs(signal)).to(signal.stream.dtype)


def _of_inputs(node: PerRowNode, group: RowGroup, *inputs: Tensor) -> Tensor:
    leaves = tuple(part for part in group.parts if isinstance(part, PlacedDelta))
    if len(leaves) == 1:
        return leaves[0].of(*inputs)
    return _grouped(node, leaves, len(group.rows) // len(leaves), *inputs)


def _rows_of(signal: Signal, node: PerRowNode, group: RowGroup) -> Signal:
    """A group's rows of a signal; what is one tensor there stays one."""
    taken = {id(tensor): node.take(tensor, group) for tensor in signal[:3]}
    x, h, stream = (taken[id(tensor)] for tensor in signal[:3])
    return Signal(x, h, stream, node.index(group.rows, stream.device))


def _grouped(
    node: PerRowNode, leaves: tuple[PlacedDelta, ...], each: int, x: Tensor, *more: Tensor
) -> Tensor:
    """``s_i · f_i(x[i], ...)`` for forms of one class and shape, as batched matrix products.

    A form has `each` rows that follow one another.
    """
    first = leaves[0]
    if first.by_row is not None and x.ndim == 3:
        runs = x if each == 1 else x.reshape(len(leaves), -1, x.shape[-1])
        scale = node.scales(leaves, x).view(-1, 1, 1)
        change = first.by_row.by_row(node.stacked(leaves), runs, scale)
        return change if each == 1 else change.view(*x.shape[:-1], -1)
    leaves = tuple(leaf for leaf in leaves for _ in range(each))
    called = vmap(partial(_call, first.delta), randomness="different")
    change = called(node.stacked(leaves), x, *more)
    scale = node.scales(leaves, change)
    return change * scale.view(-1, *(1,) * (change.ndim - 1))


def _call(module: nn.Module, parameters: dict[str, Tensor], *inputs: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return functional_call(module, parameters, inputs)
    change: Tensor = twin(module, parameters)(*inputs)
    return change


def _kind(part: Node, chosen: int) -> Any:
    """Equal for parts that can be computed together: all but the parameters' values is the same."""
    if not isinstance(part, PlacedDelta) or any(True for _ in part.delta.buffers()):
        return chosen
    if any(isinstance(module, AuxiliaryLoss | Attending) for module in part.delta.modules()):
        return chosen  # their losses and weights are looked at, one form at a time
    if any(isinstance(module, SharesModule) for module in part.delta.modules()):
        return chosen
    shapes = tuple((name, p.shape, p.dtype) for name, p in part.delta.named_parameters())
    settings = tuple((type(module), _settings(module)) for module in part.delta.modules())
    kind = part.insertion, shapes, settings
    return kind if _is_hashable(kind) else chosen


def _is_hashable(kind: object) -> bool:
    """Whether it can be compared by its hash: a form may keep lists among its attributes."""
    try:
        hash(kind)
    except TypeError:
        return False
    return True


def _settings(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    own = sorted(vars(module).items())
    return tuple((k, v) for k, v in own if not k.startswith("_") and k != "training")
