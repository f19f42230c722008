"""The torch modules of `deltakit.methods.hyperformer`: a generator of adapters, and these."""

from abc import ABC
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Delta, Reads, SharesModule, TaskConditioned
from deltakit.methods.forms.adapter import ACTIVATIONS

GENERATOR_STD = 0.01


class Generated(NamedTuple):
    """An adapter's numbers for each of n tasks, ``(n, ...)``."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    scale: Tensor
    shift: Tensor

    def of(self, tasks: Tensor | int) -> "Generated":
        """The numbers of one task, or of one for each row."""
        return Generated(*(each[tasks] for each in self))

    def to(self, device: torch.device) -> "Generated":
        """The numbers on another device."""
        return Generated(*(each.to(device) for each in self))


class Generator(nn.Module):
    """The adapters of one stack of layers, from the vectors of tasks, layers and positions.

    Args:
        d: the width of the stack.
        m: the bottleneck of its adapters.
        layers: how many layers it has.
        positions: how many adapters a layer has.
        size: the width of every vector.
        hidden: the width inside the network that makes one vector of three.
    """

    def __init__(
        self, d: int, m: int, *, layers: int, positions: int, size: int, hidden: int
    ) -> None:
        super().__init__()
        self.shapes = Generated((d, m), (1, m), (m, d), (1, d), (1, d), (1, d))  # type: ignore[arg-type]
        self.layers = nn.Embedding(layers, size)
        self.positions = nn.Embedding(positions, size)
        self.mix = nn.Sequential(
            nn.Linear(3 * size, hidden), nn.ReLU(), nn.Linear(hidden, size), nn.LayerNorm(size)
        )
        self.heads = nn.ModuleDict({
            name: _head(size, shape[0] * shape[1]) for name, shape in self.shapes._asdict().items()
        })  # fmt: skip

    def forward(self, tasks: Tensor, layer: int, position: int) -> Generated:
        """The adapters at one place for tasks with the vectors ``(n, size)``."""
        place = torch.cat((self.layers.weight[layer], self.positions.weight[position]))
        z = self.mix(torch.cat((tasks, place.expand(len(tasks), -1)), -1))
        return Generated(**{
            name: self.heads[name](z).view(-1, *shape)
            for name, shape in self.shapes._asdict().items()
        })  # fmt: skip


def _head(size: int, numbers: int) -> nn.Linear:
    head = nn.Linear(size, numbers)
    nn.init.normal_(head.weight, std=GENERATOR_STD)
    nn.init.zeros_(head.bias)
    return head


class Adapter(Delta, SharesModule, ABC):
    """LN(f(h W_down + b_down) W_up + b_up), all of whose numbers are generated.

    Shapes: ``(..., d)`` to ``(..., d)``. Only the first adapter of a stack has the generator among
    its child modules, and only the first of a delta the vectors of the tasks.
    """

    def __init__(
        self,
        generator: Generator,
        vectors: nn.Embedding,
        place: tuple[int, int],
        activation: str,
        *,
        owns_generator: bool,
        owns_vectors: bool,
    ) -> None:
        super().__init__()
        self.place = place
        self.activation = ACTIVATIONS[activation]
        self._shared = (generator, vectors)
        if owns_generator:
            self.generator = generator
        if owns_vectors:
            self.vectors = vectors

    def generated(self, device: torch.device) -> Generated:
        """The adapter's numbers for each task."""
        generator, vectors = self._shared
        tasks = vectors.weight.to(generator.layers.weight.device)
        made: Generated = generator(tasks, *self.place)
        return made.to(device)

    def changed(self, x: Tensor, made: Generated) -> Tensor:
        """The change with numbers for one task, or of one for each row of ``(rows, tokens, d)``."""
        h = x.to(made.down.dtype)  # most of these adapters have no parameters of their own
        inner = self.activation(h @ made.down + made.down_bias)
        change = inner @ made.up + made.up_bias
        normal = F.layer_norm(change, change.shape[-1:])
        return (normal * made.scale + made.shift).to(x.dtype)


class GeneratedAdapter(Adapter):
    """The adapter of one task."""

    def forward(self, x: Tensor) -> Tensor:
        return self.changed(x, self.generated(x.device).of(0))


class GeneratedByTask(Adapter, TaskConditioned):
    """The adapters of several tasks, one for each row."""

    reads = (Reads.SOURCE, Reads.TASKS)
    tasks: tuple[str, ...] = ()

    def forward(self, x: Tensor, tasks: Tensor) -> Tensor:
        return self.changed(x, self.generated(x.device).of(tasks))
