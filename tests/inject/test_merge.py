"""Merging: the merged model computes the same without hooks, and unmerging is exact."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

import deltakit as dk
from deltakit.errors import NotMergeable
from deltakit.inject.mergeable import EQUAL_ACTIVATIONS
from deltakit.methods.forms.adapter import ACTIVATIONS

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
        ("ia3", "Fusion"),
    ],
)
def test_refusals_name_the_part_and_change_nothing(
    kit: SimpleNamespace, spec: str, part: str
) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.parse_method(spec), name="a")
    if part == "Fusion":
        dk.attach(model, dk.parse_method(spec), name="b")
        dk.attach(model, dk.AdapterFusion("a", "b"), name="fused")
    kit.randomise_deltas(model)
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(NotMergeable, match=r"encoder\.\d\..*does not fold into a weight") as caught:
        dk.merge(model)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)
    assert "\n" not in str(caught.value)
    assert part in str(caught.value)


# --------------------------------------------------------------- a wider feed-forward

PLAIN = {"bert": "hidden_act", "roberta": "hidden_act", "distilbert": "activation",
         "gpt2": "activation_function"}  # fmt: skip
"""The families with a plain feed-forward, and the config's key for its nonlinearity."""


def widths(model: Any) -> dict[str, tuple[int, int]]:
    """What every linear projection says of itself, checked against its weight."""
    found = {}
    for name, module in model.named_modules():
        match module:
            case torch.nn.Linear():
                found[name] = (module.out_features, module.in_features)
            case Conv1D():
                found[name] = (module.nx, module.nf)
            case _:
                continue
        assert found[name] == tuple(module.weight.shape), name
    return found


@pytest.mark.parametrize(
    "spec",
    [
        "parallel[bottleneck=3,activation={f}]",
        "parallel[bottleneck=3,activation={f},bias=false,scale=1]",
        "parallel[bottleneck=3,activation={f},learned_scale=true]",
        "lora[targets=all,rank=2]+parallel[bottleneck=3,activation={f}]",
        "ia3+bitfit+parallel[bottleneck=3,activation={f}]+parallel[bottleneck=2,activation={f}]",
    ],
)
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("family", PLAIN)
def test_a_parallel_adapter_makes_the_feed_forward_wider(
    kit: SimpleNamespace, family: str, activation: str, spec: str
) -> None:
    model = kit.make_model(family, "classify", **{PLAIN[family]: activation})
    batch = kit.make_batch()
    plain, before, narrow = kit.out(model, batch), kit.snapshot(model), widths(model)
    dk.attach(model, dk.parse_method(spec.format(f=activation)))
    kit.randomise_deltas(model)
    unmerged, attached, counts = kit.out(model, batch), kit.snapshot(model), dk.summary(model)
    dk.merge(model)
    merged = kit.out(model, batch)
    torch.testing.assert_close(merged, unmerged, atol=1e-5, rtol=1e-5)
    assert (merged - plain).abs().max() > 1e-2
    assert kit.hook_count(model) == 0
    assert [n for n, _ in model.named_modules()] == attached["modules"]
    wider = widths(model)
    assert sum(wider[name] != width for name, width in narrow.items()) == 4  # two in each layer
    assert dk.summary(model) == counts
    dk.merge(model)
    assert torch.equal(kit.out(model, batch), merged)
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), plain)
        assert {k: v for k, v in widths(model).items() if k in narrow} == narrow
    assert torch.equal(kit.out(model, batch), merged) and kit.hook_count(model) == 0
    dk.unmerge(model)
    kit.assert_same(attached, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), unmerged)
    dk.merge(model)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))
    assert widths(model) == narrow


@pytest.mark.parametrize("name", [n for n in ACT2FN if n in ACTIVATIONS or n in EQUAL_ACTIVATIONS])
def test_names_of_one_nonlinearity(name: str) -> None:
    x = torch.linspace(-6, 6, 201, dtype=torch.float64)
    ours = ACTIVATIONS[EQUAL_ACTIVATIONS.get(name, name)]
    torch.testing.assert_close(ACT2FN[name](x), ours(x), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("base", ["gelu_new", "gelu_pytorch_tanh", "silu"])
def test_a_nonlinearity_of_another_name(kit: SimpleNamespace, base: str) -> None:
    model, batch = kit.make_model("gpt2", activation_function=base), kit.make_batch()
    ours = "swish" if base == "silu" else "gelu_new"
    dk.attach(model, dk.ParallelAdapter(bottleneck=3, activation=ours))
    kit.randomise_deltas(model)
    unmerged = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), unmerged, atol=1e-5, rtol=1e-5)


def without_bias(model: Any) -> None:
    for layer in model.encoder.layer:
        layer.output.dense.bias = None


@pytest.mark.parametrize(
    ("family", "spec", "change", "message"),
    [
        (
            "bert",
            "parallel[bottleneck=3]",
            None,
            r"Bottleneck at 'encoder.0.ffn.out' does not merge into a wider feed-forward: "
            r"the feed-forward's nonlinearity is 'gelu', the adapter's 'relu'",
        ),
        (
            "bert",
            "parallel[bottleneck=3,activation=gelu_new,learned_scale=true]",
            None,
            r"ScaledDelta at .*'gelu', the adapter's 'gelu_new'",
        ),
        (
            "bert",
            "parallel[bottleneck=3,activation=gelu]",
            without_bias,
            "'encoder.layer.0.output.dense' has no bias to take the adapter's",
        ),
        ("llama", "parallel[bottleneck=3,activation=silu]", None, "'decoder.0.ffn.out'.*gated"),
        (
            "bert",
            "prefix[length=2]+parallel[bottleneck=3,activation=gelu]",
            None,
            "ReparametrisedPrefix at 'encoder.0.attn.kv' does not fold into a weight",
        ),
        (
            "bert",
            "prefix[length=2,bottleneck=none]+parallel[bottleneck=3,activation=gelu]",
            None,
            "Prefix at 'encoder.0.attn.kv' does not fold",
        ),
        (
            "bert",
            "houlsby[bottleneck=3]+parallel[bottleneck=3,activation=gelu]",
            None,
            "Bottleneck at 'encoder.0.attn.out' does not fold",
        ),
    ],
)
def test_what_makes_no_wider_feed_forward_says_why(
    kit: SimpleNamespace,
    family: str,
    spec: str,
    change: Callable[[Any], None] | None,
    message: str,
) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    if change is not None:
        change(model)
    dk.attach(model, dk.parse_method(spec))
    kit.randomise_deltas(model)
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(NotMergeable, match=message) as caught:
        dk.merge(model)
    assert "\n" not in str(caught.value)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


def test_a_base_without_a_bias_takes_an_adapter_without_one(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    without_bias(model)
    dk.attach(model, dk.ParallelAdapter(bottleneck=3, activation="gelu", bias=False))
    kit.randomise_deltas(model)
    unmerged = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), unmerged, atol=1e-5, rtol=1e-5)
    assert model.encoder.layer[0].output.dense.bias is None


def test_attaching_and_activating_while_wider(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("gpt2"), kit.make_batch()
    method = dk.ParallelAdapter(bottleneck=3, activation="gelu_new")
    dk.attach(model, method, name="a")
    kit.randomise_deltas(model)
    a = kit.out(model, batch)
    dk.merge(model)
    dk.attach(model, dk.LoRA(targets="all"), name="b")
    kit.randomise_deltas(model)
    b = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), b, atol=1e-5, rtol=1e-5)
    dk.activate(model, "a")
    assert not torch.equal(kit.out(model, batch), b) and a.shape == b.shape
    dk.merge(model)
    wider = widths(model)
    with pytest.raises(dk.DeltakitError):
        dk.attach(model, dk.IA3(), name="a")
    assert widths(model) == wider


def test_saved_while_wider(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    dk.attach(model, dk.BitFit() + dk.ParallelAdapter(bottleneck=3, activation="gelu"))
    kit.randomise_deltas(model)
    kit.train_steps(model, batch)
    expected = kit.out(model, kit.make_batch())
    dk.merge(model)
    dk.save(model, tmp_path)
    other = kit.make_model("bert", "classify")
    dk.load(other, tmp_path)
    assert torch.equal(kit.out(other, kit.make_batch()), expected)


def test_wider_in_half_precision_is_rounded_once(kit: SimpleNamespace) -> None:
    model = kit.make_model("gpt2").to(torch.bfloat16)
    method = dk.ParallelAdapter(bottleneck=3, activation="gelu_new", scale=0.3)
    dk.attach(model, method, dtype=torch.float32)
    kit.randomise_deltas(model)
    up = dict(kit.attachments(model).get("default").tensors())["decoder.0.ffn.out.up.weight"]
    dk.merge(model)
    weight = model.h[0].mlp.c_proj.weight
    assert weight.dtype is torch.bfloat16 and weight.is_contiguous()
    torch.testing.assert_close(weight[-3:], (0.3 * up.T).bfloat16())
