"""The low-rank edit of LoReFT."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Delta, Reads, ReadsEnd


class LowRankEdit(Delta):
    """Rᵀ (W h + b - R h) at the first tokens. Shapes: h ``(..., tokens, d)``, mask ``(..., n)``."""

    reads = (Reads.SOURCE, Reads.MASK)

    def __init__(self, d: int, *, rank: int, first: int, last: int, dropout: float) -> None:
        super().__init__()
        self.first, self.last, self.dropout = first, last, dropout
        self.rotation = nn.Parameter(torch.empty(rank, d))
        self.source = nn.Linear(d, rank)
        nn.init.orthogonal_(self.rotation)

    def forward(self, h: Tensor, mask: Tensor) -> Tensor:
        rotation = orthonormal(self.rotation)
        edit = F.linear(self.source(h) - F.linear(h, rotation), rotation.T)
        edit = F.dropout(edit, self.dropout, self.training) if self.dropout else edit
        return edit * self._chosen(mask, h.shape[-2]).unsqueeze(-1).to(edit.dtype)

    def _chosen(self, mask: Tensor, tokens: int) -> Tensor:
        """``(..., tokens)``: whether each token is edited."""
        count = mask.cumsum(-1)
        chosen = count <= self.first
        if mask.shape[-1] == tokens:
            chosen = chosen | (count > count[..., -1:] - self.last)
        return (chosen & mask)[..., -tokens:]


class LowRankEditOfEnds(LowRankEdit, ReadsEnd):
    """The same at the last tokens too."""


def orthonormal(matrix: Tensor) -> Tensor:
    """The rows of `matrix`, made orthonormal from the first to the last; ``(r, d)``, r ≤ d.

    Rows that are orthonormal stay what they are.
    """
    q, r = torch.linalg.qr(matrix.T.float())
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return (q * signs).T.to(matrix.dtype)
