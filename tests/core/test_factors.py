"""Forms side by side: stacked factors compute what each form computes."""

import pytest
import torch
from torch import Tensor

from deltakit.core.factors import Factored, stack_factors
from deltakit.methods.forms.adapter import Bottleneck
from deltakit.methods.forms.lora import LowRank
from deltakit.methods.forms.parallel import ScaledDelta

D = 8


def bottleneck(width: int, activation: str = "relu", *, bias: bool = True) -> Bottleneck:
    return Bottleneck(
        D, D, bottleneck=width, activation=activation, initialisation="normal", bias=bias
    )


def low_rank(rank: int) -> LowRank:
    return LowRank(D, D, rank=rank)


FORMS = {
    "equal": lambda: [bottleneck(3), bottleneck(3), bottleneck(3)],
    "unequal": lambda: [bottleneck(2), bottleneck(5)],
    "activations": lambda: [bottleneck(2, "gelu"), bottleneck(3), bottleneck(3, "tanh")],
    "some biases": lambda: [bottleneck(3), bottleneck(3, bias=False)],
    "no biases": lambda: [low_rank(2), low_rank(4)],
    "kinds": lambda: [low_rank(3), bottleneck(3), ScaledDelta(bottleneck(3, "silu"), 2.5)],
    "one": lambda: [ScaledDelta(bottleneck(4), 0.5)],
}


def randomised(name: str) -> list[torch.nn.Module]:
    forms = [form.double() for form in FORMS[name]()]
    for form in forms:
        for parameter in form.parameters():
            torch.nn.init.normal_(parameter)
    return forms


@pytest.mark.parametrize("name", FORMS)
def test_stacked_factors_are_the_forms(name: str) -> None:
    forms = randomised(name)
    x, v = torch.randn(2, 5, D).double(), torch.randn(2, 5, D).double()
    weights = torch.rand(2, 5, len(forms)).double()
    outputs = torch.stack([form(x) for form in forms], dim=-2)
    parts = [form.factors() for form in forms if isinstance(form, Factored)]
    stacked = stack_factors([part for part in parts if part is not None])
    code = stacked.code(x)
    assert stacked.sizes == (code.shape[-1], len(forms))
    scores = stacked.layout.scores(code, v @ stacked.up)
    torch.testing.assert_close(scores, torch.einsum("bti,btni->btn", v, outputs))
    mixed = stacked.layout.weighed(code, weights) @ stacked.up.T
    torch.testing.assert_close(mixed, torch.einsum("btn,btni->bti", weights, outputs))


def test_scaled_factors() -> None:
    form, x = bottleneck(3), torch.randn(4, D)
    scaled = form.factors().scaled(3.0)
    found: Tensor = stack_factors([scaled]).code(x) @ scaled.up.T + scaled.up_bias
    torch.testing.assert_close(found, 3.0 * form(x))


@pytest.mark.parametrize("form", [bottleneck(3), low_rank(3), ScaledDelta(bottleneck(3), 1.0)])
def test_no_factors_where_dropout_acts(form: torch.nn.Module) -> None:
    inner = form.form if isinstance(form, ScaledDelta) else form
    assert isinstance(form, Factored) and form.train().factors() is not None
    inner.dropout = 0.5
    assert form.factors() is None
    assert form.eval().factors() is not None
