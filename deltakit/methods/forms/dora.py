"""The decomposed change of DoRA: a direction and a length."""

from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Delta, Reads, RewritesWeight
from deltakit.core.site import BaseLinear
from deltakit.methods.forms.lora import LowRank


class WeightDecomposed(Delta, RewritesWeight):
    """(g - 1) (h - b) + g s · drop(x) Aᵀ Bᵀ. Shapes: x ``(..., d_in)``, h ``(..., d_out)``."""

    reads = (Reads.INPUT, Reads.REPRESENTATION)

    def __init__(self, linear: BaseLinear, pair: LowRank, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = pair.dropout
        self.lora_A, self.lora_B = pair.lora_A, pair.lora_B
        self.magnitude = nn.Parameter(linear.weight().norm(dim=1).to(pair.lora_A.device))
        self._linear = linear

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        weight, bias = self._linear.weight(), self._linear.bias()
        if self.dropout and self.training:
            x = F.dropout(x, self.dropout)
            base = F.linear(x, weight.to(x.dtype))
        else:
            base = h if bias is None else h - bias.to(h.dtype)
        gain = self._gain(weight)
        low = F.linear(F.linear(x, self.lora_A), self.lora_B)
        return (gain - 1) * base + gain * self.scale * low

    def rewritten(self, weight: Tensor) -> Tensor:
        return self._gain(weight)[:, None] * (weight + self._product())

    def _product(self) -> Tensor:
        return self.scale * (self.lora_B @ self.lora_A)

    def _gain(self, weight: Tensor) -> Tensor:
        """g, ``(d_out,)``; no gradient flows through the norm."""
        norm = (weight + self._product().detach()).norm(dim=1)
        return self.magnitude / norm.masked_fill(norm == 0, 1).to(self.magnitude.dtype)
