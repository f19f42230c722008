"""The vectors of VeRA around frozen random matrices."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Delta, Mergeable, SharesModule


class Projections(nn.Module):
    """The frozen A ``(rank, d_in)`` and B ``(d_out, rank)``, which no file contains."""

    A: Tensor
    B: Tensor

    def __init__(self, d_in: int, d_out: int, *, rank: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator(device="cpu").manual_seed(seed)
        self.register_buffer("A", _kaiming(rank, d_in, generator), persistent=False)
        self.register_buffer("B", _kaiming(d_out, rank, generator), persistent=False)


def _kaiming(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    bound = (6 / columns) ** 0.5
    drawn = torch.empty(rows, columns, device="cpu").uniform_(-bound, bound, generator=generator)
    return drawn.to(torch.get_default_device())


class VectorScaled(Delta, Mergeable, SharesModule):
    """λ_b ⊙ (B (λ_d ⊙ (A drop(x)))). Shapes: ``(..., d_in)`` to ``(..., d_out)``.

    Projections that another form owns are no child module of this one.
    """

    def __init__(
        self, projections: Projections, *, owner: bool, d_initial: float, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.lambda_d = nn.Parameter(torch.full((len(projections.A),), d_initial))
        self.lambda_b = nn.Parameter(torch.zeros(len(projections.B)))
        self._projections = (projections,)
        if owner:
            self.projections = projections

    def forward(self, x: Tensor) -> Tensor:
        A, B = self._matrices(x)
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return self.lambda_b * F.linear(self.lambda_d * F.linear(x, A), B)

    def weight_change(self) -> Tensor:
        A, B = self._matrices(self.lambda_b)
        return self.lambda_b[:, None] * (B @ (self.lambda_d[:, None] * A))

    def _matrices(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shared = self._projections[0]
        return shared.A.to(like), shared.B.to(like)
