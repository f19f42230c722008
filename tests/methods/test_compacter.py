"""Compacter: the formula, the shared rule, PHM, files, settings, names with plus signs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import deltakit as dk
from deltakit.core.method import Sum
from deltakit.core.spec import format_method
from deltakit.errors import InvalidConfig
from deltakit.methods.forms.compacter import HypercomplexLinear


def forms(model: Any, name: str = "default") -> dict[str, Any]:
    return dict(model.deltakit.attached[name].modules())


def dense(linear: HypercomplexLinear) -> torch.Tensor:
    """H of a projection, ``(d_in, d_out)``, one Kronecker product after another."""
    rule, blocks = linear._rule[0].weight, linear.blocks()
    return sum(torch.kron(a, b) for a, b in zip(rule, blocks, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize("spec", ["compacter[bottleneck=4,n=2]", "phm[bottleneck=4,n=2]"])
def test_the_formula(kit: SimpleNamespace, spec: str) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.parse_method(spec))
    kit.randomise_deltas(model)
    form = forms(model)["encoder.1.ffn.out"]
    h = torch.randn(2, 5, form.up.bias.shape[0])
    inner = F.gelu(h @ dense(form.down) + form.down.bias, approximate="tanh")
    expected = inner @ dense(form.up) + form.up.bias
    torch.testing.assert_close(form(h), expected, atol=1e-5, rtol=1e-5)


def test_one_rule_for_all_layers(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.Compacter(bottleneck=4, n=2))
    kit.randomise_deltas(model)
    parts = [part for form in forms(model).values() for part in (form.down, form.up)]
    assert len({id(part._rule[0]) for part in parts}) == 1
    assert sum("rule" in name for name, _ in model.named_parameters()) == 1
    expected = kit.out(model, batch)
    dk.save(model, tmp_path / "delta")
    (file,) = (tmp_path / "delta").glob("*.safetensors")
    assert sum("rule" in name for name in load_file(file)) == 1
    fresh = kit.make_model("bert")
    dk.load(fresh, tmp_path / "delta")
    assert torch.equal(kit.out(fresh, batch), expected)


def test_the_rule_gets_the_gradient_of_every_layer(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.Compacter(bottleneck=4, n=2))
    kit.randomise_deltas(model)
    grads = []
    for layers in ((), (0,), (1,)):
        dk.drop(model, layers=layers)
        model.zero_grad()
        out = model(**kit.make_batch())[0]
        out.square().sum().backward()
        (rule,) = [p for n, p in model.named_parameters() if "rule" in n]
        grads.append(rule.grad.clone())
    assert all(grad.abs().sum() > 0 for grad in grads)
    assert not torch.allclose(grads[0], grads[1])


def test_the_first_layer_may_be_dropped(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.AdapterDrop(dk.Compacter(bottleneck=4, n=2), first=1))
    assert sum("rule" in name for name, _ in model.named_parameters()) == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"n": 0}, "n"),
        ({"rank": 0}, "rank"),
        ({"placement": "nowhere"}, "houlsby"),
        ({"activation": "nothing"}, "gelu"),
    ],
)
def test_bad_settings(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        dk.Compacter(**fields)


def test_widths_that_n_does_not_divide(kit: SimpleNamespace) -> None:
    with pytest.raises(InvalidConfig, match=r"the bottleneck has width 3, .* not a multiple of 2"):
        dk.attach(kit.make_model("bert"), dk.Compacter(bottleneck=3, n=2))


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        ("compacter++", ["ffn"]),
        ("compacter++[n=2]", ["ffn"]),
        ("compacter+++compacter", ["ffn", "houlsby"]),
        ("compacter+compacter++[bottleneck=4]", ["houlsby", "ffn"]),
    ],
)
def test_two_plus_signs_are_part_of_a_name(spec: str, names: list[str]) -> None:
    method = dk.parse_method(spec)
    parts = method.parts if isinstance(method, Sum) else (method,)
    assert [part.placement for part in parts if isinstance(part, dk.Compacter)] == names
    assert dk.parse_method(format_method(method)) == method


def test_rows_of_two_deltas_have_what_each_shares(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    for name in "ab":
        dk.attach(model, dk.Compacter(bottleneck=4, n=2), name=name)
    kit.randomise_deltas(model)
    alone = []
    for name in "ab":
        dk.activate(model, name)
        alone.append(kit.out(model, batch))
    choice = ["a", "b", None][: len(batch["input_ids"])]
    choice += ["b"] * (len(batch["input_ids"]) - len(choice))
    dk.activate(model, dk.PerRow(choice))
    found = kit.out(model, batch)
    for row, name in enumerate(choice):
        if name is not None:
            expected = alone["ab".index(name)][row]
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)
