"""Modules that run with parameters of a delta's own: for a whole pass, or for some rows of it."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from deltakit.runtime.passes import Owner, current_pass
from deltakit.runtime.row_counts import fitted
from deltakit.runtime.tables import RowHead, tables_of
from deltakit.runtime.twins import Forward


class ParametersPort:
    """Runs a module again with the parameters that the running pass has for it.

    Other threads may run the module with others at the same time, so they are not put into it.
    """

    def __init__(self, owner: Owner, module: nn.Module) -> None:
        self.owner = owner
        self.forward = Forward(module)

    def __call__(self, module: nn.Module, args: Any, *rest: Any) -> Any:
        tables, output = tables_of(self.owner), rest[-1]
        if module in tables.own:
            output = self.forward.run(tables.own[module], args, rest[0])
        for places, rows in _fitted(tables.heads.get(module, ()), output):
            values = {name: place.parameter for name, place in places.items()}
            output = _with_rows(self.forward, values, rows, (args, rest[0]), output)
        return output


def _with_rows(
    forward: Forward, values: Any, rows: tuple[int, ...], given: Any, output: Tensor
) -> Tensor:
    """The output with some rows computed with `values`."""
    index = torch.tensor(rows, device=output.device)
    args, kwargs = tree_map(partial(_some_rows, index, output.shape[0]), given)
    return output.index_copy(0, index, forward.run(values, args, kwargs))


def _fitted(heads: Sequence[RowHead], output: Any) -> Sequence[RowHead]:
    """The heads, with the rows of the module that use them."""
    counts = current_pass().rows
    if not heads or counts is None or counts.entries == output.shape[0]:
        return heads
    chosen = {row: index for index, (_, rows) in enumerate(heads) for row in rows}
    choice = fitted(tuple(map(chosen.get, range(counts.entries))), output.shape[0], counts)
    return [
        (places, tuple(row for row, each in enumerate(choice) if each == index))
        for index, (places, _) in enumerate(heads)
    ]


def _some_rows(index: Tensor, size: int, value: Any) -> Any:
    batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
    return value.index_select(0, index) if batched else value


def install_parameters(owner: Owner, module: nn.Module) -> RemovableHandle:
    """Lets a module run with the parameters that the owner's tables have for it.

    Deltas at the module's output change what it returns then, so their hooks come later.
    """
    return module.register_forward_hook(
        ParametersPort(owner, module), with_kwargs=True, prepend=True
    )
