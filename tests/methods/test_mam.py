"""MAM: golden values, and that it is the sum of a prefix and a scaled parallel adapter."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.errors import InvalidConfig


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_golden(golden: Any, kit: SimpleNamespace, attention: str) -> None:
    model = golden.model(attention)
    dk.attach(model, dk.MAM(length=5, prefix_bottleneck=8, reduction=4), name="a")
    golden.fill(model, "mam", ffn="ffn.out")
    trained = kit.out(model, golden.batch)
    torch.testing.assert_close(trained, golden.tensors["mam.output"], atol=1e-5, rtol=0)
    dk.deploy(model, "a")
    torch.testing.assert_close(kit.out(model, golden.batch), trained, atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "bart"])
def test_it_is_the_sum_and_the_two_at_once(kit: SimpleNamespace, family: str) -> None:
    batch, outputs = kit.make_inputs(family), []
    prefix = dk.PrefixTuning(length=3, bottleneck=4)
    parallel = dk.ParallelAdapter(bottleneck=5, scale=2.0)
    mam = dk.MAM(length=3, prefix_bottleneck=4, bottleneck=5, scale=2.0)
    for method in (mam, prefix + parallel):
        model = kit.make_model(family)
        dk.attach(model, method)
        kit.randomise_deltas(model)
        outputs.append(kit.out(model, batch))
    model = kit.make_model(family)
    dk.attach(model, prefix, name="p")
    dk.attach(model, parallel, name="a")
    tensors = dict(kit.attachments(model).get("p").tensors()) | dict(
        kit.attachments(model).get("a").tensors()
    )
    whole = kit.make_model(family)
    dk.attach(whole, mam)
    kit.randomise_deltas(whole)
    with torch.no_grad():
        for key, tensor in kit.attachments(whole).get("default").tensors():
            tensors.pop(key).copy_(tensor)
    assert not tensors
    dk.activate(model, dk.Stack("p", "a"))
    outputs.append(kit.out(model, batch))
    for other in outputs[1:]:
        assert torch.equal(outputs[0], other)


def test_it_starts_as_its_prefix_alone(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    torch.manual_seed(0)
    dk.attach(model, dk.PrefixTuning(length=3, bottleneck=4))
    alone = kit.out(model, batch)
    dk.detach(model)
    torch.manual_seed(0)
    dk.attach(model, dk.MAM(length=3, prefix_bottleneck=4))
    assert torch.equal(kit.out(model, batch), alone)


def test_the_hybrid_that_no_paper_names(kit: SimpleNamespace, tmp_path: Any) -> None:
    spec = "prefix[length=10]+lora[rank=4]+parallel[bottleneck=32]"
    model, batch = kit.make_model("llama", "causal"), kit.make_batch()
    batch = {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)}
    dk.attach(model, dk.parse_method(spec))
    before = model(**batch).loss.item()
    kit.train_steps(model.train(), batch, steps=4)
    assert model.eval()(**batch).loss.item() < before
    ids = batch["input_ids"][:1]
    told = model.generate(ids, max_new_tokens=4, do_sample=False)
    dk.save(model, tmp_path)
    fresh = kit.make_model("llama", "causal")
    dk.load(fresh, tmp_path)
    assert torch.equal(kit.out(fresh, batch), kit.out(model, batch))
    assert torch.equal(fresh.generate(ids, max_new_tokens=4, do_sample=False), told)


@pytest.mark.parametrize(
    "setting",
    [{"length": 0}, {"prefix_bottleneck": 0}, {"reduction": 0}, {"scale": -1}, {"dropout": 2}],
)
def test_settings(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InvalidConfig, match=f"{name.removeprefix('prefix_')}="):
        dk.MAM(**setting)
