"""A method of your own in one file: a learned gate on what the feed-forward adds.

    python examples/your_own_method.py

h ← h + g ⊙ h, with g zero at the start: at first the model is the base. The decorator gives the
method its name. Specs, `deltakit compare` and `dk.load` know it once this module is imported.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from tiny import make_model, make_tokenizer
from torch import Tensor, nn

import deltakit as dk
from deltakit.testing import Case, checks


class GateDelta(dk.Delta):
    """Δh = g ⊙ h. Shapes: ``(..., d)`` to ``(..., d)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gate * x


@dk.register_method("gate")
@dataclass(frozen=True, kw_only=True)
class Gate(dk.Method):
    """A learned gate at the feed-forward's output."""

    paper: ClassVar[dk.Paper] = dk.IA3.paper
    learning_rate: ClassVar[float] = 1e-2

    def placements(self) -> tuple[dk.Placement, ...]:
        form = lambda handle: GateDelta(handle.d_out)  # noqa: E731
        how = dk.Insertion.SEQUENTIAL
        return (dk.Placement(site=dk.Site.FFN_OUT, make_delta=form, insertion=how),)


def main() -> None:
    """Attaches the method, in a sum, and holds it to two laws of the suite."""
    model, batch = make_model(), make_tokenizer()(["a great film"], return_tensors="pt")
    before = model(**batch).logits
    dk.attach(model, dk.parse_method("gate + lora[rank=2]"), name="mine")
    assert torch.equal(model(**batch).logits, before)
    print(dk.summary(model))
    for law in (checks.check_start, checks.check_gradients):
        law(Case.of(Gate(), "llama"))
        print(f"{law.__name__}: holds on a tiny Llama")


if __name__ == "__main__":
    main()
