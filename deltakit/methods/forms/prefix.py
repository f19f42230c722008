"""The keys and values of prefix tuning, and the networks that make them in training."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Delta, ExtraPositions, Reparametrised, ShiftsKeys


class Prefix(ExtraPositions):
    """Keys and values as they are. Shape of the change: ``(2, length, d_kv)``."""

    def __init__(self, length: int, d_kv: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.length = length
        self.dropout = dropout
        self.memory = nn.Parameter(torch.randn(2, length, d_kv))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.memory, self.dropout, self.training) if self.dropout else self.memory


class CountedPrefix(Prefix, ShiftsKeys):
    """The same, counted in relative positions."""


class Trunk(nn.Module):
    """The part that the layers of a stack share: tanh(E W_1 + b_1), ``(length, bottleneck)``."""

    def __init__(self, length: int, d: int, bottleneck: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, d))
        self.down = nn.Linear(d, bottleneck)

    def forward(self) -> Tensor:
        return torch.tanh(self.down(self.embedding))


class _Kept(NamedTuple):
    """A result, and the values of the parameters it was made from."""

    values: tuple[Tensor, ...]
    memory: Tensor


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


class ReparametrisedPrefix(ExtraPositions, Reparametrised):
    """One layer's keys and values, as the network makes them: ``(2, length, d_kv)``.

    The first layer of a stack has the trunk among its modules; the others refer to it. On a CPU,
    the result of an evaluation is kept, with the values it was made from.
    """

    plain: ClassVar[type[Prefix]] = Prefix
    """What it is deployed as."""

    def __init__(self, trunk: Trunk, d_kv: int, *, owner: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.length, bottleneck = trunk.embedding.shape[0], trunk.down.out_features
        self.up = nn.Linear(bottleneck, 2 * d_kv)
        self.dropout = dropout
        self._trunk = (trunk,)  # in a tuple, so that its parameters are counted once
        if owner:
            self.trunk = trunk
        self._kept: _Kept | None = None

    def forward(self, x: Tensor) -> Tensor:
        memory = self._memory() if self._may_change() else self._kept_memory()
        return F.dropout(memory, self.dropout, self.training) if self.dropout else memory

    def _may_change(self) -> bool:
        """Whether nothing is kept: in training, in a graph, on a device that would have to wait."""
        accelerated = self.up.weight.device.type != "cpu"
        return accelerated or torch.is_grad_enabled() or torch.compiler.is_compiling()

    def _kept_memory(self) -> Tensor:
        """The memory in evaluation, made once for the same values of the parameters.

        Autograd does not count writes through ``p.data``, so the values themselves are compared.
        """
        kept, own = self._kept, (*self._trunk[0].parameters(), *self.up.parameters())
        if kept is None or not all(map(_same, own, kept.values)):
            kept = self._kept = _Kept(tuple(p.detach().clone() for p in own), self._memory())
        return kept.memory

    def _memory(self) -> Tensor:
        hidden = self._trunk[0]().to(self.up.weight.device)
        return self.up(hidden).unflatten(-1, (2, -1)).transpose(0, 1)

    def deployed(self) -> Delta:
        with torch.no_grad():
            memory = self._memory().contiguous()
        with torch.device(memory.device):
            plain = self.plain(self.length, memory.shape[-1], dropout=self.dropout).to(memory.dtype)
        plain.memory.data = memory
        return plain


class CountedReparametrisedPrefix(ReparametrisedPrefix, ShiftsKeys):
    """The same, counted in relative positions."""

    plain = CountedPrefix


class Shift(Delta):
    """The same number for every token. Shapes: ``(rows, tokens)`` to ``(rows, tokens)``."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.length)
