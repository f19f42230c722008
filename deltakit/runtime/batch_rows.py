"""A batch whose rows use different deltas."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from deltakit.core.delta import (
    Attending,
    AuxiliaryLoss,
    Combiner,
    SharesModule,
    compute_dtype,
)
from deltakit.runtime.generation import kept_values
from deltakit.runtime.nodes import Node, PlacedDelta, Port, Signal
from deltakit.runtime.passes import current_pass
from deltakit.runtime.row_counts import fitted
from deltakit.runtime.twins import twin

Grouping = tuple[tuple[Node, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class PerRowNode(Node):
    """For each row one of `parts`, by its index, or None."""

    parts: tuple[Node, ...]
    choice: tuple[int | None, ...]
    _groups: dict[Any, list[Grouping]] = field(default_factory=dict)
    _indices: dict[Any, Tensor] = field(default_factory=dict)
    _parameters: dict[Any, list[dict[str, Tensor]]] = field(default_factory=dict)
    _fitted: dict[int, "PerRowNode"] = field(default_factory=dict)

    def change(self, signal: Signal, port: Port) -> Tensor:
        return port.rows(self, signal)

    def groups(self) -> list[Grouping]:
        """Parts that are computed together, and the rows that they are for, a part each."""
        present = tuple(part.present for part in self.parts)
        if present not in self._groups:
            found: dict[Any, list[int]] = {}
            for row, chosen in enumerate(self.choice):
                if chosen is not None and present[chosen]:
                    found.setdefault(_kind(self.parts[chosen], chosen), []).append(row)
            self._groups[present] = [
                (tuple(self._part(row) for row in rows), tuple(rows)) for rows in found.values()
            ]
        return self._groups[present]

    def index(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        """`rows` as a tensor, made once."""
        key = (rows, device)
        if key not in self._indices:
            self._indices[key] = torch.tensor(rows, device=device)
        return self._indices[key]

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
        if leaves not in self._parameters:
            self._parameters[leaves] = [dict(leaf.delta.named_parameters()) for leaf in leaves]
        own = self._parameters[leaves]
        for name in own[0]:
            if (leaves, name) not in found:
                found[leaves, name] = torch.stack([each[name] for each in own])
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

    def _part(self, row: int) -> Node:
        chosen = self.choice[row]
        assert chosen is not None
        return self.parts[chosen]

    @property
    def leaves(self) -> tuple[PlacedDelta, ...]:
        return tuple(leaf for part in self.parts for leaf in part.leaves)

    @property
    def combiners(self) -> tuple[Combiner, ...]:
        return tuple(combiner for part in self.parts for combiner in part.combiners)

    @property
    def weighs(self) -> bool:
        return any(part.weighs for part in self.parts)


def change_of_rows(node: PerRowNode, parts: tuple[Node, ...], signal: Signal, port: Port) -> Tensor:
    """Δh where row i of `signal` uses ``parts[i]``; all parts are of one kind."""
    first = parts[0]
    if all(part is first for part in parts):
        return first.change(signal, port)
    leaves = tuple(part for part in parts if isinstance(part, PlacedDelta))
    inputs = leaves[0].inputs(signal)
    change = grouped(leaves, node.stacked(leaves), *inputs)
    return change.to(signal.stream.dtype)


def grouped(
    leaves: Sequence[PlacedDelta], parameters: dict[str, Tensor], x: Tensor, *more: Tensor
) -> Tensor:
    """``s_i · f_i(x[i], ...)`` for forms of one class and shape, as batched matrix products."""
    first = leaves[0]
    dtype = compute_dtype(first.delta) or x.dtype  # x may be ids
    scale = torch.tensor([leaf.scale for leaf in leaves], dtype=dtype, device=x.device)
    if first.by_row is not None and x.ndim == 3:
        return first.by_row.by_row(parameters, x, scale.view(-1, 1, 1))
    change = vmap(partial(_call, first.delta), randomness="different")(parameters, x, *more)
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
