"""The torch modules of `deltakit.methods.gated`: forms whose change a gate weighs."""

import copy
from abc import ABC

import torch
from torch import Tensor, nn

from deltakit.core.delta import (
    Attending,
    AuxiliaryLoss,
    Delta,
    ExtraPositions,
    Reads,
    ReadsEnd,
    Reparametrised,
)
from deltakit.errors import InvalidConfig
from deltakit.methods.forms.mixture import masked_mean


class Gate(nn.Module):
    """σ(x wᵀ + b). Shapes: ``(..., d)`` to ``(..., 1)``, between 0 and 1."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.linear = nn.Linear(d, 1)
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x))


class GatedForm(Delta, Attending, Reparametrised, ABC):
    """A form and its gate."""

    members = ("gate",)

    def __init__(self, form: Delta, d: int) -> None:
        super().__init__()
        self.form = form
        self.attention = Gate(d)

    def deployed(self) -> Delta:
        if not isinstance(self.form, Reparametrised):
            return self
        gated = copy.copy(self)
        gated._modules = {**self._modules, "form": self.form.deployed()}
        return gated


class GatedByToken(GatedForm):
    """g(x) f(x), a gate for each token."""

    def forward(self, x: Tensor) -> Tensor:
        change: Tensor = self.attention(x) * self.form(x)
        return change


class GatedBySequence(GatedForm, ReadsEnd):
    """ḡ f(x), ḡ the mean of the gates of a sequence's real tokens."""

    reads = (Reads.SOURCE, Reads.MASK)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        gate = masked_mean(self.attention(x), mask).unsqueeze(-2)
        change: Tensor = gate * self.form(x)
        return change


class GatedPositions(GatedForm, ExtraPositions, ReadsEnd):
    """Keys and values times the mean gate of each row's real tokens, ``(2, rows, length, d_kv)``.

    x is what the attention module is given.
    """

    reads = (Reads.INPUT, Reads.MASK)

    def __init__(self, form: ExtraPositions, d: int) -> None:
        super().__init__(form, d)
        self.length = form.length

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        gate = masked_mean(self.attention(x), mask)
        memory: Tensor = self.form(x.new_empty(0))
        return memory.unsqueeze(1) * gate.view(1, -1, 1, 1)


def gated(form: Delta, d: int, *, by_sequence: bool) -> GatedForm:
    """The form with a gate that reads inputs of width d.

    Raises:
        InvalidConfig: a form that cannot be weighed in this way.
    """
    kind = type(form).__name__
    if isinstance(form, AuxiliaryLoss) or form.reads != (Reads.SOURCE,):
        raise InvalidConfig(
            f"Gated: the form {kind} reads other inputs than its insertion says, or has a loss of "
            "its own. Gate an adapter, LoRA, (IA)³ or a prefix."
        )
    if not isinstance(form, ExtraPositions):
        return GatedBySequence(form, d) if by_sequence else GatedByToken(form, d)
    if not by_sequence:
        raise InvalidConfig(
            f"Gated(gate='token'): the positions that {kind} adds are the same for all tokens of a "
            "sequence. Take gate='sequence'."
        )
    return GatedPositions(form, d)
