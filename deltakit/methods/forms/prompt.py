"""The vectors of prompt tuning."""

import torch
from torch import Tensor, nn

from deltakit.core.delta import ExtraPositions


class Prompt(ExtraPositions):
    """The embeddings as they are. Shape of the change: ``(length, d)``."""

    def __init__(self, length: int, vocabulary: Tensor) -> None:
        super().__init__()
        self.length = length
        drawn = torch.randint(vocabulary.shape[0], (length,), device=vocabulary.device)
        self.embedding = nn.Parameter(vocabulary.detach()[drawn].clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.embedding
