"""The bottleneck, with its nonlinearities and the ways to fill its matrices."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import BatchedRows, Delta, FFNUnits, FusedAdd, MergesAsFFN
from deltakit.core.factors import Factored, Factors, identity

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
    "identity": identity,
}
"""The nonlinearities f, by transformers' names."""


Initialisation = Literal["truncated_normal", "normal", "lora"]


class Bottleneck(Delta, FusedAdd, BatchedRows, Factored, MergesAsFFN):
    """f(x W_down + b_down) W_up + b_up, with dropout on the result.

    Shapes: ``(..., d_in)`` to ``(..., d_out)`` through ``(..., bottleneck)``.
    """

    def __init__(
        self,
        d_in: int,
        d_out: int,
        *,
        bottleneck: int,
        activation: str,
        initialisation: Initialisation,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(d_in, bottleneck, bias=bias)
        self.nonlinearity = activation
        self.activation = ACTIVATIONS[activation]
        self.up = nn.Linear(bottleneck, d_out, bias=bias)
        self.dropout = dropout
        initialise(self.down.weight, self.up.weight, initialisation)
        if bias:
            nn.init.zeros_(self.down.bias)
            nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        change = self.up(self.activation(self.down(x)))
        return F.dropout(change, self.dropout, self.training) if self.dropout else change

    def added(self, stream: Tensor, x: Tensor, scale: float) -> Tensor:
        inner = self.activation(self.down(x))  # narrow: cheaper to scale than the change
        if scale != 1.0:
            inner = inner * scale
        change = F.linear(inner, self.up.weight, _scaled(self.up.bias, scale))
        return stream + (F.dropout(change, self.dropout, self.training) if self.dropout else change)

    def by_row(self, parameters: Mapping[str, Tensor], x: Tensor, scale: Tensor) -> Tensor:
        inner = self.activation(_linear_by_row(x, parameters, "down"))
        change = _linear_by_row(inner, parameters, "up") * scale
        return F.dropout(change, self.dropout, self.training) if self.dropout else change

    def factors(self) -> Factors | None:
        if self.dropout and self.training:
            return None
        down, up = self.down, self.up
        return Factors(down.weight, down.bias, self.activation, up.weight, up.bias)

    def units(self) -> FFNUnits:
        down, up = self.down, self.up
        biases = (
            layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
            for layer in (down, up)
        )
        return FFNUnits(down.weight, next(biases), up.weight, next(biases), self.nonlinearity)


def _linear_by_row(x: Tensor, parameters: Mapping[str, Tensor], name: str) -> Tensor:
    product = torch.bmm(x, parameters[f"{name}.weight"].mT)
    bias = parameters.get(f"{name}.bias")
    return product if bias is None else product + bias.unsqueeze(1)


def _scaled(tensor: Tensor | None, scale: float) -> Tensor | None:
    return tensor if tensor is None or scale == 1.0 else tensor * scale


def initialise(down: Tensor, up: Tensor, how: Initialisation) -> None:
    """Fills both matrices: near the identity as the papers do, or exactly there ("lora")."""
    match how:
        case "truncated_normal":  # Houlsby et al.: σ = 1e-2, cut at two σ
            nn.init.trunc_normal_(down, std=1e-2, a=-2e-2, b=2e-2)
            nn.init.trunc_normal_(up, std=1e-2, a=-2e-2, b=2e-2)
        case "normal":  # Pfeiffer et al., as BERT itself
            nn.init.normal_(down, std=0.02)
            nn.init.normal_(up, std=0.02)
        case "lora":  # He et al.: Δh is zero at the start
            nn.init.kaiming_uniform_(down, a=5**0.5)
            nn.init.zeros_(up)
