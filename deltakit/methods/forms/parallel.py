"""A form with a learned scale."""

import torch
from torch import Tensor, nn

from deltakit.core.delta import Delta, FFNUnits, MergesAsFFN
from deltakit.core.factors import Factored, Factors
from deltakit.methods.forms.adapter import Bottleneck


class ScaledDelta(Delta, Factored, MergesAsFFN):
    """s f(x) with a learned scalar s. Shapes as those of `form`."""

    def __init__(self, form: Bottleneck, scale: float) -> None:
        super().__init__()
        self.form = form
        self.scale = nn.Parameter(torch.full((1,), scale))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.form(x)

    def factors(self) -> Factors | None:
        factors = self.form.factors()
        return None if factors is None else factors.scaled(self.scale)

    def units(self) -> FFNUnits:
        return self.form.units().scaled(self.scale)
