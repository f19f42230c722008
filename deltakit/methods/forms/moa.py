"""The torch modules of `deltakit.methods.moa`: a block's router, and the parts that it weighs."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import (
    Attending,
    AuxiliaryLoss,
    Delta,
    ExtraPositions,
    Reads,
    ReadsBlock,
    Reparametrised,
    SharesModule,
)
from deltakit.errors import InvalidConfig

INNER = 4
"""The width inside the router, over the number of parts."""


class SwiGLU(nn.Module):
    """W_2 (silu(W_1 x) ⊙ W_3 x). Shapes: ``(..., d)`` to ``(..., parts)``."""

    def __init__(self, d: int, parts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d, INNER * parts)
        self.up = nn.Linear(d, INNER * parts)
        self.down = nn.Linear(INNER * parts, parts)
        for linear in (self.gate, self.up, self.down):
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return logits


class Weights(nn.Module):
    """w of each token, ``(..., d)`` to ``(..., parts)``; zero below the token's threshold."""

    def __init__(self, d: int, parts: int, router: str, threshold: float | None) -> None:
        super().__init__()
        self.router = SwiGLU(d, parts) if router == "swiglu" else nn.Linear(d, parts)
        self.highest = threshold
        if threshold is not None:
            self.threshold = nn.Linear(d, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.sigmoid(self.router(x))
        if self.highest is None:
            return weights
        limit = self.highest * torch.sigmoid(self.threshold(x))
        chosen = (weights >= limit).to(weights.dtype)
        return weights * (chosen + (limit.detach() - limit))


class BlockRouter(nn.Module, Attending):
    """The router of one block, and the names of the parts that it weighs."""

    def __init__(
        self,
        d: int,
        names: tuple[str, ...],
        router: Literal["swiglu", "linear"],
        threshold: float | None,
    ) -> None:
        super().__init__()
        self.members = names
        self.attention = Weights(d, len(names), router, threshold)


class WeighedPart(Delta, ReadsBlock, SharesModule, Reparametrised):
    """w_k f(x), w the block's. Only the first part of a block has the router as a child module."""

    reads = (Reads.SOURCE, Reads.BLOCK)

    def __init__(self, form: Delta, router: BlockRouter, index: int, *, owner: bool) -> None:
        super().__init__()
        self.form = form
        self.index = index
        self._router = (router,)
        if owner:
            self.router = router

    @property
    def of_block(self) -> nn.Module:
        return self._router[0].attention

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        weight = weights[..., self.index : self.index + 1].to(x.device, x.dtype)
        change: Tensor = weight * self.form(x)
        return change

    def deployed(self) -> Delta:
        if not isinstance(self.form, Reparametrised):
            return self
        weighed = copy.copy(self)
        weighed._modules = {**self._modules, "form": self.form.deployed()}
        return weighed


def check_weighed(form: Delta) -> None:
    """Raises `InvalidConfig` for a form that has no weight for each token."""
    kind = type(form).__name__
    if isinstance(form, ExtraPositions):
        raise InvalidConfig(
            f"MoA: the positions that {kind} adds are the same for all tokens, so they have no "
            "weight for each. Weigh adapters, LoRA or (IA)³, or take Gated for a prefix."
        )
    if isinstance(form, AuxiliaryLoss) or form.reads != (Reads.SOURCE,):
        raise InvalidConfig(
            f"MoA: the form {kind} reads other inputs than its insertion says, or has a loss of "
            "its own. Weigh an adapter, LoRA or (IA)³."
        )
