"""Norm tuning: trains the norms and gives them back; its counts are in test_counts."""

from types import SimpleNamespace

import pytest

import deltakit as dk


@pytest.mark.parametrize(("family", "word"), [("bert", "LayerNorm"), ("llama", "norm")])
def test_only_norms_and_the_head_change_and_all_come_back(
    kit: SimpleNamespace, family: str, word: str
) -> None:
    model, batch = kit.make_model(family, "classify"), kit.make_batch(labels=True)
    before = kit.snapshot(model)
    dk.attach(model, dk.NormTuning())
    kit.train_steps(model, batch)
    now = {n: p for n, p in model.named_parameters() if n in before["state"]}
    changed = {n for n, p in now.items() if not p.equal(before["state"][n])}
    head = {n for n in before["state"] if n.startswith(("classifier", "score"))}
    assert changed == head | {n for n in before["state"] if word in n}
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))
