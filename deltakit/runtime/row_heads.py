"""A batch whose rows use different deltas: its number of rows, and the head of each row."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from deltakit.runtime.generation import NotedGenerate, install_generation
from deltakit.runtime.passes import PassPorts, current_pass
from deltakit.runtime.row_counts import RowsPort, fitted

RowHead = tuple[Mapping[str, Tensor], tuple[int, ...]]
"""Values by parameter, and the rows of the batch that use them."""


class HeadPort:
    """Runs one module of the task head with the values that each row's delta has for it."""

    def __init__(self, module: nn.Module, heads: Sequence[RowHead]) -> None:
        self.run = _Forward(module)
        self.heads = heads

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        for values, rows in self._fitted(output.shape[0]):
            index = torch.tensor(rows, device=output.device)
            some, named = tree_map(partial(_some_rows, index, output.shape[0]), (args, kwargs))
            cast = {n: v.to(self.run.get_parameter(n).dtype) for n, v in values.items()}
            own = functional_call(self.run, cast, some, named)
            output = output.index_copy(0, index, own)
        return output

    def _fitted(self, size: int) -> Sequence[RowHead]:
        """The heads, with the rows of the module that use them."""
        counts = current_pass().rows
        if counts is None or counts.entries == size:
            return self.heads
        used = [
            next((i for i, h in enumerate(self.heads) if row in h[1]), None)
            for row in range(counts.entries)
        ]
        choice = fitted(tuple(used), size)
        return [
            (values, tuple(row for row, each in enumerate(choice) if each == index))
            for index, (values, _) in enumerate(self.heads)
        ]


class _Forward(nn.Module):
    """A module's forward without the hooks on it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def _some_rows(index: Tensor, size: int, value: Any) -> Any:
    batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
    return value.index_select(0, index) if batched else value


def install_rows(
    model: nn.Module, passes: PassPorts, entries: int
) -> "Iterator[RemovableHandle | NotedGenerate]":
    """Makes the model refuse a batch of another number of rows, and follow repeated ones."""
    port = RowsPort(entries)
    for module in passes.ports:
        yield module.register_forward_pre_hook(port, with_kwargs=True)
    yield from install_generation(model)


def install_heads(model: nn.Module, heads: Sequence[RowHead]) -> Iterable[RemovableHandle]:
    """Makes the modules of the task head use, for each row, the values given for it."""
    children = dict.fromkeys(name.partition(".")[0] for values, _ in heads for name in values)
    for child in children:
        module, start = model.get_submodule(child), f"{child}."
        own = [
            ({_inner(k, start): v for k, v in values.items() if k.startswith(start)}, rows)
            for values, rows in heads
        ]
        yield module.register_forward_hook(HeadPort(module, own), with_kwargs=True)


def _inner(name: str, start: str) -> str:
    """The parameter's name in `_Forward`."""
    return f"module.{name.removeprefix(start)}"
