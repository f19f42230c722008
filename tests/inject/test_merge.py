"""Merging: the merged model computes the same without hooks, and unmerging is exact."""

from types import SimpleNamespace

import pytest
import torch

import deltakit as dk
from deltakit.errors import NotMergeable

TINY = (
    "bert", "roberta", "electra", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3",
)  # fmt: skip


@pytest.mark.parametrize("targets", [("q", "v"), ("k",), ("all",)])
@pytest.mark.parametrize("family", TINY)
def test_merged_equals_unmerged(
    kit: SimpleNamespace, family: str, targets: tuple[str, ...]
) -> None:
    model, batch = kit.make_model(family, "classify"), kit.make_batch()
    plain, before = kit.out(model, batch), kit.snapshot(model)
    dk.attach(model, dk.LoRA(rank=4, alpha=6, targets=targets))
    kit.randomise_deltas(model)
    unmerged, hooks = kit.out(model, batch), kit.hook_count(model)
    dk.merge(model)
    merged = kit.out(model, batch)
    assert kit.hook_count(model) == 0
    torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=1e-5)
    assert (merged - plain).abs().max() > 1e-3
    dk.merge(model)
    assert torch.equal(kit.out(model, batch), merged)
    dk.unmerge(model)
    assert torch.equal(kit.out(model, batch), unmerged) and kit.hook_count(model) == hooks
    for name, value in before["state"].items():
        assert torch.equal(model.state_dict()[name], value), name
    dk.unmerge(model)
    assert torch.equal(kit.out(model, batch), unmerged)
    dk.merge(model)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


def test_a_sum_of_loras_merges(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("llama"), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=2) + dk.LoRA(rank=3, targets=("q", "up"), rslora=True))
    kit.randomise_deltas(model)
    unmerged = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), unmerged, atol=1e-5, rtol=1e-5)


def test_disabled_and_activate_while_merged(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    plain = kit.out(model, batch)
    dk.attach(model, dk.LoRA(), name="a")
    dk.attach(model, dk.LoRA(), name="b")
    kit.randomise_deltas(model)
    b = kit.out(model, batch)
    dk.activate(model, "a")
    a = kit.out(model, batch)
    dk.merge(model)
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), plain)
    dk.activate(model, "b")
    assert torch.equal(kit.out(model, batch), b)
    dk.activate(model, "a")
    assert torch.equal(kit.out(model, batch), a)


def test_full_fine_tuning_merges_to_itself(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    before = kit.snapshot(model)
    dk.attach(model, dk.FullFineTuning() + dk.LoRA())
    kit.randomise_deltas(model)
    kit.train_steps(model, batch)
    trained = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), trained, atol=1e-5, rtol=1e-5)
    dk.unmerge(model)
    assert torch.equal(kit.out(model, batch), trained)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


def test_merged_half_precision_is_rounded_once(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert").to(torch.bfloat16)
    dk.attach(model, dk.LoRA(rank=4, alpha=8, targets="q"))
    kit.randomise_deltas(model)
    query = model.encoder.layer[0].attention.self.query
    base = query.weight.detach().clone()
    delta = dict(model.deltakit.attached["default"].modules())["encoder.0.attn.q"]
    dk.merge(model)
    change = 2 * (delta.lora_B @ delta.lora_A).float()
    assert query.weight.dtype is torch.bfloat16
    torch.testing.assert_close(query.weight, (base.float() + change).bfloat16())
    dk.unmerge(model)
    assert torch.equal(query.weight, base)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("houlsby[reduction=4]", "Bottleneck"),
        ("pfeiffer[reduction=4]", "Bottleneck"),
        ("lora+houlsby[reduction=4]", "Bottleneck"),
        ("lora+pfeiffer[reduction=4]", "Bottleneck"),
        ("fusion", "Fusion"),
    ],
)
def test_refusals_name_the_part_and_change_nothing(
    kit: SimpleNamespace, spec: str, part: str
) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    if spec == "fusion":
        kit.attach_fusion(model)
    else:
        dk.attach(model, dk.parse_method(spec))
        kit.randomise_deltas(model)
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(NotMergeable, match=r"encoder\.\d\..*does not fold into a weight") as caught:
        dk.merge(model)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)
    assert "\n" not in str(caught.value)
    assert part in str(caught.value)
