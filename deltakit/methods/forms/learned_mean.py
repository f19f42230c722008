"""The weights of `deltakit.methods.learned_mean`."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from deltakit.core.delta import Combiner


class LearnedWeights(Combiner):
    """Σ_n w_n u_n with w trained. Shapes: each change ``(..., d)``, w ``(members,)``."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((members,), 1 / members))

    def forward(self, query: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        del query
        mixed = sum(w * u for w, u in zip(self.weights, deltas, strict=True))
        assert isinstance(mixed, Tensor)
        return mixed
