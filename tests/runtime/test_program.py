"""Hooks follow what is attached and active."""

import copy
import threading
from types import SimpleNamespace

import torch
from torch import nn

import deltakit as dk
from deltakit.runtime.twins import Forward


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
