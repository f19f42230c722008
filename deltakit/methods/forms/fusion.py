"""The attention of AdapterFusion over its members' changes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Attending, Combiner, Regularised
from deltakit.core.factors import CombinesFactors, Foldable, StackedFactors


class Fusion(Combiner, Attending, Regularised, CombinesFactors, Foldable):
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
        weights = self._weights(scores)
        mixed = sum(a * u for a, u in zip(weights.split(1, dim=-1), deltas, strict=True))
        assert isinstance(mixed, Tensor)
        return mixed if self.value is None else self.value(mixed)

    def combined(self, query: Tensor, code: Tensor, stacked: StackedFactors) -> Tensor:
        layout, up = stacked.layout, stacked.up
        # Weights times weights is less work than both times the tokens, where these are more.
        many = query.numel() // query.shape[-1] > up.shape[1]
        matched = F.linear(query, *self.matching(stacked)) if many else self._match(query, stacked)
        mixed = layout.weighed(code, self._weights(layout.scores(code, matched)))
        if many or self.value is None:
            return F.linear(mixed, self.valued(up))
        change: Tensor = self.value(F.linear(mixed, up))
        return change

    def matching(self, stacked: StackedFactors) -> tuple[Tensor, Tensor]:
        """Weight ``(w + n, d)`` and bias of what makes of h its products q · k with all keys.

        Where u is a column of `up` the product is q · W_k u, and b_k is added to the biases' keys.
        """
        units, biases = (self.key.weight @ stacked.up).split(stacked.sizes, dim=1)
        keys = torch.cat([units, biases + self.key.bias.unsqueeze(1)], dim=1)
        return keys.T @ self.query.weight, self.query.bias @ keys

    def _match(self, query: Tensor, stacked: StackedFactors) -> Tensor:
        """The same products, token by token."""
        q = self.query(query)
        matched = F.linear(q, self.key.weight.T) @ stacked.up
        units, biases = matched.split(stacked.sizes, dim=-1)
        return torch.cat([units, biases + F.linear(q, self.key.bias.unsqueeze(0))], dim=-1)

    def valued(self, up: Tensor) -> Tensor:
        """W_v U, ``(d, w + n)``."""
        return up if self.value is None else self.value.weight @ up

    def folded(self, stacked: StackedFactors) -> nn.Module:
        return FoldedFusion(self, stacked)

    def _weights(self, scores: Tensor) -> Tensor:
        weights: Tensor = self.attention(F.dropout(scores, self.dropout, self.training))
        return weights

    def penalty(self) -> Tensor:
        if self.value is None:
            return self.query.weight.new_zeros(())
        weight = self.value.weight
        identity = torch.eye(weight.shape[0], dtype=weight.dtype, device=weight.device)
        return self.regularisation * (identity - weight).square().sum()


class FoldedFusion(nn.Module):
    """A fusion and its members for inference, without a matrix of d × d.

    Args:
        fusion: the fusion, whose `attention` it uses.
        stacked: its members' factors.
    """

    down: Tensor
    down_bias: Tensor | None
    match: Tensor
    match_bias: Tensor
    outer: Tensor

    def __init__(self, fusion: Fusion, stacked: StackedFactors) -> None:
        super().__init__()
        self.attention = fusion.attention
        self.layout = stacked.layout
        match, match_bias = fusion.matching(stacked)
        self.register_buffer("down", stacked.down, persistent=False)
        self.register_buffer("down_bias", stacked.down_bias, persistent=False)
        self.register_buffer("match", match.contiguous(), persistent=False)
        self.register_buffer("match_bias", match_bias, persistent=False)
        self.register_buffer("outer", fusion.valued(stacked.up), persistent=False)

    def forward(self, query: Tensor, x: Tensor) -> Tensor:
        code = self.layout.activated(F.linear(x, self.down, self.down_bias))
        scores = self.layout.scores(code, F.linear(query, self.match, self.match_bias))
        return F.linear(self.layout.weighed(code, self.attention(scores)), self.outer)
