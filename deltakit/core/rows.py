"""A batch whose rows use different deltas."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from deltakit.core.compose import Leaf, Node, Port, Signal
from deltakit.core.delta import Combiner, compute_dtype
from deltakit.core.site import Insertion


@dataclass(frozen=True, eq=False)
class Rows(Node):
    """For each row one of `parts`, by its index, or None."""

    parts: tuple[Node, ...]
    choice: tuple[int | None, ...]
    _indices: dict[Any, Tensor] = field(default_factory=dict)

    def change(self, signal: Signal, port: Port) -> Tensor:
        return port.rows(self, signal)

    def groups(self) -> list[tuple[tuple[Node, ...], tuple[int, ...]]]:
        """Parts that are computed together, and the rows that they are for, a part each."""
        found: dict[Any, list[int]] = {}
        for row, chosen in enumerate(self.choice):
            if chosen is not None and self.parts[chosen].present:
                found.setdefault(_kind(self.parts[chosen], chosen), []).append(row)
        return [(tuple(self._part(row) for row in rows), tuple(rows)) for rows in found.values()]

    def index(self, rows: tuple[int, ...], device: torch.device) -> Tensor:
        """`rows` as a tensor, made once."""
        key = (rows, device)
        if key not in self._indices:
            self._indices[key] = torch.tensor(rows, device=device)
        return self._indices[key]

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
    def leaves(self) -> tuple[Leaf, ...]:
        return tuple(leaf for part in self.parts for leaf in part.leaves)

    @property
    def combiners(self) -> tuple[Combiner, ...]:
        return tuple(combiner for part in self.parts for combiner in part.combiners)

    @property
    def weighs(self) -> bool:
        return any(part.weighs for part in self.parts)


def change_of_rows(parts: tuple[Node, ...], signal: Signal, port: Port) -> Tensor:
    """Δh where row i of `signal` uses ``parts[i]``; all parts are of one kind."""
    first = parts[0]
    if all(part is first for part in parts):
        return first.change(signal, port)
    leaves = [part for part in parts if isinstance(part, Leaf)]
    source = signal.h if leaves[0].insertion is Insertion.SEQUENTIAL else signal.x
    dtype = compute_dtype(leaves[0].delta)
    change = grouped([leaf.delta for leaf in leaves], source if dtype is None else source.to(dtype))
    if any(leaf.scale != 1.0 for leaf in leaves):
        scale = change.new_tensor([leaf.scale for leaf in leaves])
        change = change * scale.view(-1, *(1,) * (change.ndim - 1))
    return change.to(signal.stream.dtype)


def grouped(modules: Sequence[nn.Module], x: Tensor) -> Tensor:
    """``modules[i](x[i])`` for modules of one class and shape, as batched matrix products."""
    tensors = [dict(module.named_parameters()) for module in modules]
    stacked = {name: torch.stack([each[name] for each in tensors]) for name in tensors[0]}
    run = vmap(partial(_call, modules[0]), randomness="different")
    return run(stacked, x)


def _call(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return functional_call(module, parameters, (x,))


def _kind(part: Node, chosen: int) -> Any:
    """Equal for parts that can be computed together: all but the parameters' values is the same."""
    if not isinstance(part, Leaf) or any(True for _ in part.delta.buffers()):
        return chosen
    shapes = tuple((name, p.shape, p.dtype) for name, p in part.delta.named_parameters())
    settings = tuple((type(module), _settings(module)) for module in part.delta.modules())
    return part.insertion, shapes, settings


def _settings(module: nn.Module) -> tuple[tuple[str, Any], ...]:
    own = sorted(vars(module).items())
    return tuple((k, v) for k, v in own if not k.startswith("_") and k != "training")
