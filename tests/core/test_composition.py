"""Compositions on real models: the laws that they keep."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import deltakit as dk

LIGHT = settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SPECS = ("lora", "pfeiffer[reduction=4]", "houlsby[reduction=4]")


def two(kit: SimpleNamespace, family: str, spec: str) -> Any:
    model = kit.make_model(family)
    for name in ("a", "b"):
        dk.attach(model, dk.parse_method(spec), name=name)
    kit.randomise_deltas(model)
    return model


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_of_one_is_that_one(kit: SimpleNamespace, family: str, spec: str) -> None:
    model, batch = two(kit, family, spec), kit.make_batch()
    dk.activate(model, "a")
    alone = kit.out(model, batch)
    dk.activate(model, dk.Stack("a"))
    assert torch.equal(kit.out(model, batch), alone)
    dk.activate(model, dk.Mean("a"))
    assert torch.equal(kit.out(model, batch), alone)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_mean_of_a_delta_with_its_twin_is_it(kit: SimpleNamespace, family: str, spec: str) -> None:
    model, batch = two(kit, family, spec), kit.make_batch()
    a, b = (dict(kit.attachments(model).get(name).tensors()) for name in "ab")
    with torch.no_grad():
        for key, tensor in a.items():
            b[key].copy_(tensor)
    dk.activate(model, "a")
    alone = kit.out(model, batch)
    dk.activate(model, dk.Mean("a", "b"))
    torch.testing.assert_close(kit.out(model, batch), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_weights_of_zero_and_one(kit: SimpleNamespace, spec: str) -> None:
    model, batch = two(kit, "bert", spec), kit.make_batch()
    with dk.disabled(model):
        plain = kit.out(model, batch)
    dk.activate(model, dk.Mean("a", "b", weights=[0, 0]))
    torch.testing.assert_close(kit.out(model, batch), plain, atol=1e-6, rtol=1e-6)
    for weights, name in (([1, 0], "a"), ([0, 1], "b")):
        dk.activate(model, name)
        alone = kit.out(model, batch)
        dk.activate(model, dk.Mean("a", "b", weights=weights))
        torch.testing.assert_close(kit.out(model, batch), alone, atol=1e-6, rtol=1e-6)


def at_site(kit: SimpleNamespace, model: Any, what: Any) -> Tensor:
    """What leaves the first layer's FFN, where the change is the only one before it."""
    seen: dict[str, Tensor] = {}
    dk.activate(model, what)
    hook = model.layers[0].mlp.register_forward_hook(lambda _m, _a, y: seen.update(y=y))
    kit.out(model, kit.make_batch())
    hook.remove()
    return seen["y"]


@LIGHT
@given(weights=st.tuples(st.floats(-2, 2), st.floats(-2, 2)))
def test_mean_is_linear_at_one_site(kit: SimpleNamespace, weights: tuple[float, float]) -> None:
    model = kit.make_model("llama")
    for name in ("a", "b"):
        dk.attach(model, dk.LoRA(rank=4, targets="down"), name=name)
    kit.randomise_deltas(model)
    base, a, b = (at_site(kit, model, what) for what in (None, "a", "b"))
    mixed = at_site(kit, model, dk.Mean("a", "b", weights=weights))
    expected = base + weights[0] * (a - base) + weights[1] * (b - base)
    torch.testing.assert_close(mixed, expected, atol=1e-4, rtol=1e-4)


def test_a_stack_of_loras_adds_at_a_site(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama")
    for name in ("a", "b"):
        dk.attach(model, dk.LoRA(rank=4, targets="down"), name=name)
    kit.randomise_deltas(model)
    base, a, b = (at_site(kit, model, what) for what in (None, "a", "b"))
    stacked = at_site(kit, model, dk.Stack("a", "b"))
    torch.testing.assert_close(stacked, a + b - base, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("lora", "houlsby[reduction=4]"),
        ("lora", "lora[rank=2,targets=q/k]"),
        ("pfeiffer[reduction=4]", "houlsby[reduction=4]"),
    ],
)
def test_a_sum_is_both_placements(kit: SimpleNamespace, family: str, one: str, other: str) -> None:
    batch = kit.make_batch()
    model = kit.make_model(family)
    dk.attach(model, dk.parse_method(f"{one}+{other}"), name="sum")
    kit.randomise_deltas(model)
    both = dict(kit.attachments(model).get("sum").tensors())
    summed = kit.out(model, batch)
    dk.attach(model, dk.parse_method(one), name="one")
    dk.attach(model, dk.parse_method(other), name="other")
    count = 0
    with torch.no_grad():
        first = dict(kit.attachments(model).get("one").tensors())
        for key, tensor in first.items():
            tensor.copy_(both[key])
            count += 1
        for key, tensor in kit.attachments(model).get("other").tensors():
            site, _, name = key.rpartition(".lora_") if ".lora_" in key else (key, "", "")
            second = f"{site}#1.lora_{name}"
            tensor.copy_(both[second] if key in first else both[key])
            count += 1
    assert count == len(both)
    dk.activate(model, dk.Mean("one", "other", weights=[1, 1]))
    torch.testing.assert_close(kit.out(model, batch), summed, atol=1e-5, rtol=1e-5)
