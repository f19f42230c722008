"""The rescaling of (IA)³."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from deltakit.core.delta import BatchedRows, CustomSum, Delta, FusedAdd, Scaling


class Rescale(Delta, FusedAdd, BatchedRows, Scaling, CustomSum):
    """h ⊙ (l - 1). Shapes: ``(..., d)`` to ``(..., d)``."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.vector - 1)

    def added(self, stream: Tensor, x: Tensor, scale: float) -> Tensor:
        assert stream is x  # a sequential delta at a site whose stream is h
        return x * (1 + scale * (self.vector - 1) if scale != 1.0 else self.vector)

    def by_row(self, parameters: Mapping[str, Tensor], x: Tensor, scale: Tensor) -> Tensor:
        return x * (scale * (parameters["vector"].unsqueeze(1) - 1))

    def factor(self) -> Tensor:
        return self.vector

    def weighted_sum(
        self, terms: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """1 + Σ w (l - 1) (Zhang et al. 2023, arXiv:2306.14870)."""
        changes = [weight * (tensors["vector"] - 1) for weight, tensors in terms]
        return {"vector": 1 + torch.stack(changes).sum(0)}
