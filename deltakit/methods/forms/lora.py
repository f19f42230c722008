"""The low-rank products of LoRA: of a linear map, and of a table of embeddings."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import BatchedRows, CustomSum, Delta, FusedAdd, Mergeable, add_product
from deltakit.core.factors import Factored, Factors, identity

Initialisation = Literal["gaussian", "kaiming"]


class _Product(Delta, Mergeable, CustomSum):
    """B A with both zero: B of shape ``(d_out, rank)``, A of shape ``(rank, d_in)``."""

    def __init__(self, d_in: int, d_out: int, *, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.zeros(rank, d_in))
        self.lora_B = nn.Parameter(torch.zeros(d_out, rank))

    def weight_change(self) -> Tensor:
        return self.lora_B @ self.lora_A

    def weighted_sum(
        self, terms: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """Σ w B A, exactly where the ranks add up to this form's, else its best approximation."""
        A = torch.cat([tensors["lora_A"] for _, tensors in terms])
        B = torch.cat([weight * tensors["lora_B"] for weight, tensors in terms], dim=1)
        rank = self.lora_A.shape[0]
        if rank < len(A):
            A, B = _truncate(A, B, rank)
        return {"lora_A": A, "lora_B": B}


class LowRank(_Product, FusedAdd, BatchedRows, Factored):
    """drop(x) Aᵀ Bᵀ. Shapes: ``(..., d_in)`` to ``(..., d_out)`` through ``(..., rank)``."""

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        rank: int,
        dropout: float = 0.0,
        initialisation: Initialisation = "gaussian",
    ) -> None:
        super().__init__(d_in, d_out, rank=rank)
        self.dropout = dropout
        match initialisation:
            case "gaussian":
                nn.init.normal_(self.lora_A, std=1 / rank)
            case "kaiming":
                nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        return F.linear(F.linear(x, self.lora_A), self.lora_B)

    def added(self, stream: Tensor, x: Tensor, scale: float) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = F.linear(x, self.lora_A)
        return add_product(stream, low, self.lora_B, scale)

    def by_row(self, parameters: Mapping[str, Tensor], x: Tensor, scale: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training) if self.dropout else x
        low = torch.bmm(x, parameters["lora_A"].mT) * scale
        return torch.bmm(low, parameters["lora_B"].mT)

    def factors(self) -> Factors | None:
        if self.dropout and self.training:
            return None
        return Factors(self.lora_A, None, identity, self.lora_B, None)


class EmbeddingLowRank(_Product):
    """The rows of Aᵀ for the given ids, times Bᵀ. Shapes: ids ``(...)`` to ``(..., d)``.

    `scale` is what the table itself multiplies its vectors by.
    """

    def __init__(
        self,
        vocabulary: int,
        d: int,
        *,
        rank: int,
        scale: float = 1.0,
        initialisation: Initialisation = "gaussian",
    ) -> None:
        super().__init__(vocabulary, d, rank=rank)
        self.scale = scale
        match initialisation:
            case "gaussian":
                nn.init.normal_(self.lora_A, std=1 / rank)
            case "kaiming":
                nn.init.normal_(self.lora_B)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.embedding(x, self.lora_A.T), self.lora_B) * self.scale


def _truncate(A: Tensor, B: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors of the best approximation of B A, shared out evenly, zero beyond its own rank."""
    (left, upper), (right, lower) = torch.linalg.qr(B), torch.linalg.qr(A.T)
    u, s, v = torch.linalg.svd(upper @ lower.T, full_matrices=False)
    root = s[:rank].sqrt()
    missing = rank - len(root)
    A = (root * (right @ v.T)[:, : len(root)]).T
    B = (left @ u)[:, : len(root)] * root
    return F.pad(A, (0, 0, 0, missing)), F.pad(B, (0, missing))
