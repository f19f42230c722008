"""Prefix tuning: golden values, live PEFT on decoders, the network and what is left of it."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.errors import DeltakitError, InvalidConfig, UnknownName
from deltakit.methods.prefix import Trunk

LENGTH = 5
DECODERS = ("llama", "gpt2", "qwen2", "mistral")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("case", "bottleneck"), [("prefix_tuning", 8), ("prefix_tuning_flat", None)]
)
def test_golden(
    golden: Any, kit: SimpleNamespace, case: str, bottleneck: int | None, attention: str
) -> None:
    model = golden.model(attention)
    dk.attach(model, dk.PrefixTuning(length=LENGTH, bottleneck=bottleneck), name="a")
    golden.fill(model, case, ffn="ffn.out")
    trained = kit.out(model, golden.batch)
    torch.testing.assert_close(trained, golden.tensors[f"{case}.output"], atol=1e-5, rtol=0)
    dk.deploy(model, "a")
    torch.testing.assert_close(kit.out(model, golden.batch), trained, atol=1e-6, rtol=0)


# -------------------------------------------------------------------------------------- live PEFT


@torch.no_grad()
def pair(kit: SimpleNamespace, family: str, bottleneck: int | None) -> tuple[Any, Any]:
    """Our model and PEFT's with the same values.

    Its tensors hold the layers side by side, key before value in each. Its network reads vectors
    as wide as the keys, ours as wide as the model: what grouped-query attention lacks is zero.
    """
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    config = PrefixTuningConfig(
        task_type=TaskType.CAUSAL_LM,
        num_virtual_tokens=LENGTH,
        prefix_projection=bottleneck is not None,
        encoder_hidden_size=bottleneck,
    )
    theirs = get_peft_model(kit.make_model(family, "causal"), config).eval()
    encoder = theirs.prompt_encoder["default"]
    for parameter in encoder.parameters():
        parameter.normal_(std=0.5)
    ours = kit.make_model(family, "causal")
    dk.attach(ours, dk.PrefixTuning(length=LENGTH, bottleneck=bottleneck))
    mine = dict(kit.bank(ours).get("default").tensors())
    kv = "decoder.{}.attn.kv."
    if bottleneck is None:
        whole = encoder.embedding.weight.view(LENGTH, 2, 2, -1).permute(1, 2, 0, 3)
        for layer in (0, 1):
            mine[f"{kv.format(layer)}memory"].copy_(whole[layer])
        return ours, theirs
    first, _, last = encoder.transform
    for name, tensor in (("embedding", encoder.embedding.weight), ("down.weight", first.weight)):
        trunk = mine[f"{kv.format(0)}trunk.{name}"]
        trunk.zero_()[:, : tensor.shape[1]] = tensor
    mine[f"{kv.format(0)}trunk.down.bias"].copy_(first.bias)
    for kind, tensor in (("weight", last.weight), ("bias", last.bias)):
        for layer, part in enumerate(tensor.unflatten(0, (2, -1))):
            mine[f"{kv.format(layer)}up.{kind}"].copy_(part)
    return ours, theirs


def padded_left(length: int = 7) -> dict[str, Tensor]:
    """Rows padded on the left, with the positions that `generate` gives them."""
    mask = torch.tensor([[0] * n + [1] * (length - n) for n in (0, 2, 3)])
    ids = torch.randint(5, 64, mask.shape) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


@pytest.mark.parametrize("bottleneck", [None, 6])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", DECODERS)
def test_equals_live_peft_whose_positions_begin_at_l(
    kit: SimpleNamespace, family: str, attention: str, bottleneck: int | None
) -> None:
    ours, theirs = pair(kit, family, bottleneck)
    ours.set_attn_implementation(attention)
    theirs.base_model.set_attn_implementation(attention)
    ids = torch.randint(5, 64, (3, 7))
    shifted = (torch.arange(7) + LENGTH).expand(3, -1)
    base = kit.make_model(family, "causal")
    plain = kit.out(base, {"input_ids": ids, "position_ids": shifted})
    mine = kit.out(ours, {"input_ids": ids, "position_ids": shifted})
    other = kit.out(theirs, {"input_ids": ids})
    assert (mine - plain).abs().max() > 0.05
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)

    batch = padded_left()
    seen = batch["attention_mask"].bool()
    other = kit.out(theirs, batch)  # it adds l to the positions itself
    mine = kit.out(ours, {**batch, "position_ids": batch["position_ids"] + LENGTH})
    torch.testing.assert_close(mine[seen], other[seen], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------- the network and the deployed


@pytest.mark.parametrize("spec", ["prefix[length=3,bottleneck=6]", "mam[length=3,bottleneck=4]"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "t5", "bart"])
def test_the_deployed_gives_the_same(kit: SimpleNamespace, family: str, spec: str) -> None:
    model, batch = kit.make_model(family), kit.make_inputs(family)
    dk.attach(model, dk.parse_method(spec))
    kit.randomise_deltas(model, std=0.5)
    before, training = kit.out(model, batch), model.training
    count = dk.summary(model).deployed_params
    dk.deploy(model)
    torch.testing.assert_close(kit.out(model, batch), before, atol=1e-6, rtol=1e-6)
    assert dk.summary(model).trained_params == count
    assert sum(p.numel() for p in model.deltakit.parameters()) == count
    assert all(p.requires_grad for p in model.deltakit.parameters())
    assert all(m.training is training for m in model.modules())


def test_the_deployed_is_saved_loaded_and_refused_for_the_network(
    kit: SimpleNamespace, tmp_path: Any
) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    dk.attach(model, dk.MAM(length=3, prefix_bottleneck=6, bottleneck=4))
    kit.randomise_deltas(model)
    dk.save(model, tmp_path / "training")
    dk.deploy(model)
    dk.save(model, tmp_path / "deployed")
    expected = kit.out(model, batch)
    for folder in ("training", "deployed"):
        fresh = kit.make_model("bert", "classify")
        dk.load(fresh, tmp_path / folder)
        torch.testing.assert_close(kit.out(fresh, batch), expected, atol=1e-6, rtol=1e-6)
    size = {
        f: (tmp_path / f / "delta.safetensors").stat().st_size for f in ("training", "deployed")
    }
    assert size["deployed"] < size["training"]


def test_deploying_what_has_no_network_changes_nothing(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.LoRA())
    kit.randomise_deltas(model)
    before, expected = kit.snapshot(model), kit.out(model, batch)
    dk.deploy(model)
    assert torch.equal(kit.out(model, batch), expected)
    kit.assert_same(before, kit.snapshot(model))


def test_the_trunk_is_one_and_counted_once(kit: SimpleNamespace) -> None:
    """l d + (d m + m) of a trunk for each stack, and (m + 1) 2 d_kv for each layer."""
    model = kit.make_model("bart")
    dk.attach(model, dk.PrefixTuning(length=3, bottleneck=6))
    trunk, layer = 3 * 16 + 16 * 6 + 6, (6 + 1) * 2 * 16
    expected = 3 * (trunk + 2 * layer)  # encoder, decoder, and the decoder's attention across
    assert dk.summary(model).trained_params == expected
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    assert sum(isinstance(module, Trunk) for module in model.modules()) == 3
    names = [key for key, _ in kit.bank(model).get("default").tensors() if "trunk" in key]
    assert len(names) == len(set(names)) == 9


def test_it_starts_from_a_normal_embedding(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.PrefixTuning(length=500, bottleneck=4), name="network")
    dk.attach(model, dk.PrefixTuning(length=500, bottleneck=None), name="plain")
    for name, key in (("network", "trunk.embedding"), ("plain", "memory")):
        tensor = dict(kit.bank(model).get(name).tensors())[f"encoder.0.attn.kv.{key}"]
        assert abs(tensor.mean()) < 0.05 and abs(tensor.std() - 1) < 0.05


@pytest.mark.parametrize("bottleneck", [None, 4])
def test_dropout_is_of_training_only(kit: SimpleNamespace, bottleneck: int | None) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.PrefixTuning(length=4, bottleneck=bottleneck, dropout=0.5))
    assert torch.equal(kit.out(model, batch), kit.out(model, batch))
    model.train()
    one, two = (model(**batch).last_hidden_state for _ in range(2))
    assert not torch.equal(one, two)


def test_deploying_an_unknown_delta(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    with pytest.raises(DeltakitError, match="nothing is attached"):
        dk.deploy(model)
    dk.attach(model, dk.PrefixTuning(length=3, bottleneck=4))
    before = kit.snapshot(model)
    with pytest.raises(UnknownName, match="unknown delta 'x'.*Known: default"):
        dk.deploy(model, "x")
    kit.assert_same(before, kit.snapshot(model))


@pytest.mark.parametrize(
    "setting",
    [{"length": 0}, {"length": 1.5}, {"bottleneck": 0}, {"bottleneck": True}, {"dropout": 1}],
)
def test_settings(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InvalidConfig, match=f"PrefixTuning\\({name}="):
        dk.PrefixTuning(**setting)
