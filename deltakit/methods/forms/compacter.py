"""The bottleneck of Compacter, whose matrices are sums of Kronecker products."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Delta, SharesModule
from deltakit.methods.forms.adapter import ACTIVATIONS


class Rule(nn.Module):
    """The matrices A_i, ``(n, n, n)``."""

    def __init__(self, n: int, *, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, n, n))
        nn.init.normal_(self.weight, std=std)

    def forward(self) -> Tensor:
        return self.weight


class Factors(nn.Module):
    """The matrices B_i = s_i t_i, ``(n, d_in / n, d_out / n)``."""

    def __init__(self, n: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(n, d_in // n, rank))
        self.right = nn.Parameter(torch.empty(n, rank, d_out // n))
        _glorot(self.left)
        _glorot(self.right)

    def forward(self) -> Tensor:
        return torch.bmm(self.left, self.right)


class Blocks(nn.Module):
    """The matrices B_i of full rank, ``(n, d_in / n, d_out / n)``."""

    def __init__(self, n: int, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n, d_in // n, d_out // n))
        _glorot(self.weight)

    def forward(self) -> Tensor:
        return self.weight


def _glorot(matrices: Tensor) -> None:
    for matrix in matrices.unbind():
        nn.init.xavier_uniform_(matrix, gain=2**0.5)


class HypercomplexLinear(nn.Module):
    """x H + b with H = Σ_i A_i ⊗ B_i. Shapes: ``(..., d_in)`` to ``(..., d_out)``.

    A rule that others own is no child module of this one: its numbers are counted and saved once.
    """

    def __init__(self, rule: Rule, blocks: Factors | Blocks, d_out: int, *, owner: bool) -> None:
        super().__init__()
        self.blocks = blocks
        self.bias = nn.Parameter(torch.zeros(d_out))
        self._rule = (rule,)
        if owner:
            self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self._weight(), self.bias)

    def _weight(self) -> Tensor:
        """Hᵀ, ``(d_out, d_in)``: the same for all tokens, so it is made once a pass."""
        rule = self._rule[0]().to(self.bias.device)
        return torch.einsum("iab,icd->bdac", rule, self.blocks()).flatten(0, 1).flatten(1)


class HypercomplexBottleneck(Delta, SharesModule):
    """f(x H_down + b_down) H_up + b_up. Shapes: ``(..., d)`` to ``(..., d)``."""

    def __init__(
        self, down: HypercomplexLinear, up: HypercomplexLinear, activation: str, dropout: float
    ) -> None:
        super().__init__()
        self.down = down
        self.activation = ACTIVATIONS[activation]
        self.up = up
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.up(self.activation(self.down(x)))
        return F.dropout(change, self.dropout, self.training) if self.dropout else change
