"""The attention of AdapterFusion over its members' changes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Attending, Combiner, Regularised


class Fusion(Combiner, Attending, Regularised):
    """Attention over the members' changes.

    Shapes: query ``(..., d)``, each change ``(..., d)``, attention ``(..., members)``.
    """

    def __init__(
        self,
        d: int,
        *,
        members: tuple[str, ...],
        value: bool = True,
        regularisation: float = 0.01,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.members = members
        self.query = nn.Linear(d, d)
        self.key = nn.Linear(d, d)
        self.value = nn.Linear(d, d, bias=False) if value else None
        self.attention = nn.Softmax(dim=-1)
        self.dropout = dropout
        self.regularisation = regularisation
        for projection in (self.query, self.key):
            nn.init.normal_(projection.weight, std=0.02)
            nn.init.zeros_(projection.bias)
        if self.value is not None:
            with torch.no_grad():
                self.value.weight.fill_(1e-6).fill_diagonal_(1.0)

    def forward(self, query: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        q = self.query(query)
        folded = F.linear(q, self.key.weight.T)
        scores = torch.stack([(folded * u).sum(-1) for u in deltas], dim=-1)
        scores = scores + F.linear(q, self.key.bias.unsqueeze(0))
        weights = self.attention(F.dropout(scores, self.dropout, self.training))
        mixed = sum(a * u for a, u in zip(weights.split(1, dim=-1), deltas, strict=True))
        assert isinstance(mixed, Tensor)
        return mixed if self.value is None else self.value(mixed)

    def penalty(self) -> Tensor:
        if self.value is None:
            return self.query.weight.new_zeros(())
        weight = self.value.weight
        identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
        return self.regularisation * (identity - weight).square().sum()
