"""Two deltas of one model, active in turns, are what each is alone: to optimisers and to files.

Each pair has a task head of each delta's own, and some train norms, biases or embeddings too.
"""

import copy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk

NAMES = ("a", "b")
PAIRS = (
    ("lora", "lora"),
    ("lora+bitfit", "ia3+norms"),
    ("dora", "molora"),
    ("lora[targets=embed]", "adamix"),
    ("partial[parameters=*word_embeddings*]", "loreft"),
    ("prefix", "full"),
    ("compacter[bottleneck=8]", "vera"),
    ("moa[method=lora+pfeiffer]", "unipelt"),
)


@pytest.fixture(params=PAIRS, ids=" and ".join)
def specs(request: pytest.FixtureRequest) -> dict[str, str]:
    return dict(zip(NAMES, request.param, strict=True))


def model_with(kit: SimpleNamespace, specs: dict[str, str], seed: int = 0) -> Any:
    """A classifier with deltas that differ in all their values."""
    model = kit.make_model("bert", "classify")
    torch.manual_seed(seed)
    for name, spec in specs.items():
        dk.attach(model, dk.parse_method(spec), name)
    with torch.no_grad():
        for name in specs:
            for value in values(kit, model, name).values():
                if value.is_floating_point():
                    value.add_(0.1 * torch.randn_like(value))
    return model.train()


def values(kit: SimpleNamespace, model: Any, name: str) -> dict[str, Tensor]:
    """All that a delta has, its own values of the base and the head among it."""
    attached = kit.attachments(model).get(name)
    return {**dict(attached.tensors()), **attached.own}


@torch.no_grad()
def alone(kit: SimpleNamespace, model: Any, specs: dict[str, str], name: str) -> Any:
    """A model that never had another delta than `name`, with the values that it has in `model`."""
    other = model_with(kit, {name: specs[name]})
    given = values(kit, model, name)
    for key, value in values(kit, other, name).items():
        value.copy_(given[key])
    return other


def loss_of(kit: SimpleNamespace, model: Any, turn: int) -> Tensor:
    batch = kit.make_batch(labels=True)
    torch.manual_seed(turn)  # of the experts that are drawn
    loss = model(**{**batch, "labels": (batch["labels"] + turn) % 2}).loss
    assert isinstance(loss, Tensor)
    return loss


def train(kit: SimpleNamespace, model: Any, turns: Iterator[tuple[int, str]]) -> None:
    """One Adam over everything that is trained, whichever delta is active in a turn."""
    optimiser = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.01)
    for turn, name in turns:
        dk.activate(model, name)
        optimiser.zero_grad()
        loss_of(kit, model, turn).backward()
        optimiser.step()


def gradients(kit: SimpleNamespace, model: Any, name: str) -> dict[str, Tensor]:
    found = values(kit, model, name)
    return {key: value.grad for key, value in found.items() if value.grad is not None}


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def test_training_in_turns_is_two_trainings(kit: SimpleNamespace, specs: dict[str, str]) -> None:
    model = model_with(kit, specs)
    turns = [*enumerate("abbaab")]
    apart = {name: alone(kit, model, specs, name) for name in NAMES}
    before = {name: copy.deepcopy(values(kit, model, name)) for name in NAMES}
    train(kit, model, iter(turns))
    for name, other in apart.items():
        train(kit, other, (turn for turn in turns if turn[1] == name))
        found = values(kit, model, name)
        assert_equal(found, values(kit, other, name))
        assert any(key.startswith("classifier") for key in found)
        assert not all(torch.equal(found[key], before[name][key]) for key in found)


def test_a_joint_loss_has_the_gradients_of_both(
    kit: SimpleNamespace, specs: dict[str, str]
) -> None:
    model = model_with(kit, specs)
    apart = {name: alone(kit, model, specs, name) for name in NAMES}
    losses = []
    for turn, name in enumerate(NAMES):
        dk.activate(model, name)
        losses.append(loss_of(kit, model, turn))
    torch.stack(losses).sum().backward()
    for turn, (name, other) in enumerate(apart.items()):
        loss_of(kit, other, turn).backward()
        assert_equal(gradients(kit, model, name), gradients(kit, other, name))


def test_a_state_dict_has_both(kit: SimpleNamespace, specs: dict[str, str]) -> None:
    model, other = model_with(kit, specs), model_with(kit, specs, seed=1)
    model.eval()
    other.eval()
    dk.activate(model, "a")
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    for name in NAMES:
        assert_equal(values(kit, other, name), values(kit, model, name))
        dk.activate(model, name)
        dk.activate(other, name)
        batch = kit.make_batch()
        assert torch.equal(kit.out(other, batch), kit.out(model, batch))
