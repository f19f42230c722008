"""BitFit: trains the biases and gives them back; its count is the published one."""

from types import SimpleNamespace

import pytest
import torch

import deltakit as dk
from deltakit.errors import IncompatibleDeltas, InvalidConfig


def test_only_biases_and_the_head_change_and_all_come_back(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    before = kit.snapshot(model)
    dk.attach(model, dk.BitFit())
    kit.train_steps(model, batch)
    now = {n: p for n, p in model.named_parameters() if n in before["state"]}
    changed = {n for n, p in now.items() if not torch.equal(p, before["state"][n])}
    # A key's bias is invisible behind the softmax: its gradient is zero up to rounding.
    biases = {n for n in before["state"] if n.endswith("bias") or n.startswith("classifier")}
    assert changed <= biases
    assert {n for n in biases if ".key." not in n} <= changed
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


def test_two_of_them_switch_and_do_not_mix(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("distilbert", "classify"), kit.make_batch(labels=True)
    outputs = {}
    for name in ("one", "two"):
        dk.attach(model, dk.BitFit(), name=name)
        kit.train_steps(model, batch, steps=1 + len(outputs))
        outputs[name] = kit.out(model, batch)
    for name in ("one", "two", "one"):
        dk.activate(model, name)
        assert torch.equal(kit.out(model, batch), outputs[name])
    with pytest.raises(IncompatibleDeltas, match="both have values for the base's"):
        dk.activate(model, dk.Stack("one", "two"))


def test_a_model_without_biases_is_refused(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama")
    before = kit.snapshot(model)
    with pytest.raises(InvalidConfig, match="BitFit finds nothing to train in this LlamaModel"):
        dk.attach(model, dk.BitFit())
    kit.assert_same(before, kit.snapshot(model))
