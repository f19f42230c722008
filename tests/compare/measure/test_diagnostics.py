"""What is recorded of a trained model: numbers that are known, and none where nothing is known."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.compare.measure.diagnostics import diagnose


def prepared(kit: SimpleNamespace, method: dk.Method, family: str = "bert") -> Any:
    model = kit.make_model(family)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model


def test_the_first_block_moves_by_the_change_at_its_end(kit: SimpleNamespace) -> None:
    model = prepared(kit, dk.SequentialAdapter(bottleneck=4))
    found = diagnose(model, kit.make_inputs("bert"), repeats=1)
    assert found["texts"] == 3
    assert set(found["moved"]) == {"encoder.0", "encoder.1"}
    assert found["moved"]["encoder.0"] == pytest.approx(found["changes"]["encoder.0.block.out"])
    assert found["moved"]["encoder.1"] > found["changes"]["encoder.1.block.out"]
    assert json.loads(json.dumps(found)) == found


def test_values_of_the_base_move_blocks_and_no_site(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.BitFit())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    found = diagnose(model, kit.make_inputs("bert"), repeats=1)
    assert set(found) == {"texts", "moved"}
    assert all(value > 0 for value in found["moved"].values())


def test_the_layers_of_both_stacks_are_told_apart(kit: SimpleNamespace) -> None:
    found = diagnose(prepared(kit, dk.LoRA(rank=2), "t5"), kit.make_inputs("t5"), repeats=1)
    expected = {f"{stack}.{layer}" for stack in ("encoder", "decoder") for layer in (0, 1)}
    assert set(found["moved"]) == expected


def test_attention_adds_up_and_members_are_timed(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    kit.attach_fusion(model, ("a", "b", "c"))
    expected = kit.out(model, kit.make_batch())
    found = diagnose(model, kit.make_inputs("bert"), repeats=1)
    for shares in found["attention"].values():
        assert set(shares) == {"a", "b", "c"}
        assert sum(shares.values()) == pytest.approx(1)
    assert list(found["by_members"]) == ["1", "2", "3"]
    assert found["by_members"]["1"] == 1.0
    assert torch.equal(kit.out(model, kit.make_batch()), expected)


def test_layers_are_dropped_and_come_back(kit: SimpleNamespace) -> None:
    model = prepared(kit, dk.LoRA(rank=2))
    expected = kit.out(model, kit.make_batch())
    found = diagnose(model, kit.make_inputs("bert"), repeats=1)
    assert list(found["by_dropped"]) == ["0", "1", "2"]
    assert all(value > 0 for value in found["by_dropped"].values())
    assert torch.equal(kit.out(model, kit.make_batch()), expected)


def test_layers_that_have_no_deltas_are_not_dropped_alone(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", num_hidden_layers=4)
    dk.attach(model, dk.AdapterDrop(dk.LoRA(rank=2), first=2))
    found = diagnose(model, kit.make_inputs("bert"), repeats=1)
    assert list(found["by_dropped"]) == ["0", "3", "4"]


def test_a_prompt_that_a_decoder_sees_is_left_out_of_the_comparison(kit: SimpleNamespace) -> None:
    found = diagnose(
        prepared(kit, dk.PromptTuning(length=3), "t5"), kit.make_inputs("t5"), repeats=1
    )
    assert set(found["moved"]) == {"decoder.0", "decoder.1"}


@pytest.mark.parametrize("method", [dk.HeadOnly(), dk.FullFineTuning(), dk.LoRA(rank=2)])
def test_what_changes_nothing_has_no_moves(kit: SimpleNamespace, method: dk.Method) -> None:
    model = kit.make_model("bert", "classify")
    dk.attach(model, method)
    assert "moved" not in diagnose(model, kit.make_inputs("bert"), repeats=1)


def test_of_a_model_without_deltas_nothing_is_said(kit: SimpleNamespace) -> None:
    assert diagnose(kit.make_model("bert"), kit.make_inputs("bert"), repeats=1) == {}


@pytest.mark.parametrize("top", [None, 1])
def test_the_load_of_experts(kit: SimpleNamespace, top: int | None) -> None:
    model = prepared(kit, dk.Mixture(dk.LoRA(rank=2), experts=3, top=top))
    found = diagnose(model, kit.make_inputs("bert"), repeats=1)
    assert found["load"].keys() == found["entropy"].keys() == found["attention"].keys()
    for site, shares in found["load"].items():
        assert sum(shares.values()) == pytest.approx(1)
        if top == 1:
            assert shares == pytest.approx(found["attention"][site])
            assert found["entropy"][site] == pytest.approx(0, abs=1e-6)
        else:
            assert 0.3 < found["entropy"][site] <= 1


def test_a_dead_expert_has_no_load(kit: SimpleNamespace) -> None:
    model = prepared(kit, dk.Mixture(dk.LoRA(rank=2), experts=2))
    with torch.no_grad():
        for form in dict(model.deltakit.attached["default"].modules()).values():
            form.router.weight.zero_()
    batch = kit.make_inputs("bert")
    equal = diagnose(model, batch, repeats=1)
    assert all(entropy == pytest.approx(1) for entropy in equal["entropy"].values())
    for shares in equal["load"].values():
        assert sorted(shares.values()) == [0, 1], "the first of equal weights is the largest"
