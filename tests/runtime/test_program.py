"""Hooks and compiled graphs follow what is attached and active."""

import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import deltakit as dk
from deltakit.runtime.twins import Forward


@pytest.fixture(autouse=True)
def _no_graphs() -> Any:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_a_graph_sees_what_is_attached_later(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", num_hidden_layers=1), kit.make_batch()
    plain = kit.out(model, batch)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(kit.out(compiled, batch), plain)
    dk.attach(model, dk.LoRA(rank=2))
    kit.randomise_deltas(model)
    torch.testing.assert_close(kit.out(compiled, batch), kit.out(model, batch))
    with dk.disabled(model):
        torch.testing.assert_close(kit.out(compiled, batch), plain)
    torch.testing.assert_close(kit.out(compiled, batch), kit.out(model, batch))
    assert (kit.out(compiled, batch) - plain).abs().max() > 1e-3
    dk.detach(model)
    assert kit.hook_count(model) == 0


def test_hooks_stay_while_a_thread_may_need_them(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    for name, method in (("a", dk.LoRA(rank=2)), ("b", dk.ParallelAdapter(bottleneck=3))):
        dk.attach(model, method, name)
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    dk.activate(model, "a")
    with_both = kit.hook_count(model)
    done.set()
    thread.join()
    dk.activate(model, "a")
    assert 0 < kit.hook_count(model) < with_both
    dk.activate(model, None)
    assert kit.hook_count(model) == 0


def test_other_parameters_are_not_put_into_the_module() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    before = copy.deepcopy(module.state_dict())
    other, x = torch.randn(2, 3), torch.randn(4, 3)
    found = Forward(module).run({"1.weight": other}, (x,), {})
    torch.testing.assert_close(found, module[0](x) @ other.T + module[1].bias)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
