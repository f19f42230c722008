"""Learned merge weights: the mean at the start, gradients, counts, files, settings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.errors import InvalidConfig


def with_members(kit: SimpleNamespace) -> Any:
    torch.manual_seed(0)
    model = kit.make_model("bert", "classify")
    for name in "abc":
        dk.attach(model, dk.LoRA(rank=2), name=name)
    kit.randomise_deltas(model)
    dk.attach(model, dk.LearnedMean("a", "b", "c"), name="mean")
    return model


def test_it_starts_as_the_mean(kit: SimpleNamespace) -> None:
    model, batch = with_members(kit), kit.make_batch()
    found = kit.out(model, batch)
    dk.activate(model, dk.Mean("a", "b", "c"))
    torch.testing.assert_close(found, kit.out(model, batch), atol=1e-5, rtol=1e-5)


def test_any_weights_are_those_of_a_mean(kit: SimpleNamespace) -> None:
    model, batch = with_members(kit), kit.make_batch()
    weights = [0.5, -1.0, 2.0]
    with torch.no_grad():
        for _, combiner in model.deltakit.attached["mean"].modules():
            combiner.weights.copy_(torch.tensor(weights))
    found = kit.out(model, batch)
    dk.activate(model, dk.Mean("a", "b", "c", weights=weights))
    torch.testing.assert_close(found, kit.out(model, batch), atol=1e-5, rtol=1e-5)


def test_the_weights_alone_are_trained(kit: SimpleNamespace) -> None:
    model = with_members(kit)
    found = dk.summary(model)
    assert found.trained_params == 3 * 2 * 2, "three members, two projections, two layers"
    before = {n: p.clone() for n, p in model.named_parameters() if "delta_a" in n}
    batch = kit.make_batch()
    kit.train_steps(model, {**batch, "labels": torch.zeros(len(batch["input_ids"])).long()})
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)
    moved = [c.weights for _, c in model.deltakit.attached["mean"].modules()]
    assert all((weights != 1 / 3).any() for weights in moved)


def test_files(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = with_members(kit), kit.make_batch()
    kit.randomise_deltas(model)
    dk.save(model, tmp_path / "mean", name="mean")
    torch.manual_seed(0)
    fresh = kit.make_model("bert", "classify")
    dk.load(fresh, tmp_path / "mean")
    assert torch.equal(kit.out(fresh, batch), kit.out(model, batch))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: dk.LearnedMean("a", "a"), "names a member twice"),
        (lambda: dk.LearnedMean(3), "names of deltas"),
        (lambda: dk.LearnedMean("a", member="lora"), "a method"),
    ],
)
def test_bad_settings(make: Any, text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        make()
