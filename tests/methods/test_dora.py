"""DoRA: PEFT's outputs and gradients, the decomposition, bases, merging, rows, settings."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deltakit as dk
from deltakit.arch.base_weight import weight_matrix
from deltakit.errors import IncompatibleDeltas, InvalidConfig, UnknownName
from deltakit.methods.forms.dora import WeightDecomposed

SITES = {  # PEFT's module names, by family and our site
    "bert": {
        "attn.q": "encoder.layer.{}.attention.self.query",
        "ffn.down": "encoder.layer.{}.output.dense",
    },
    "llama": {"attn.v": "layers.{}.self_attn.v_proj", "ffn.gate": "layers.{}.mlp.gate_proj"},
    "gpt2": {"attn.o": "h.{}.attn.c_proj", "ffn.up": "h.{}.mlp.c_fc"},
}
PEFTS = {
    "lora_A": "lora_A.default.weight",
    "lora_B": "lora_B.default.weight",
    "magnitude": "lora_magnitude_vector.default.weight",
}


def forms(model: Any) -> dict[str, WeightDecomposed]:
    return dict(model.deltakit.attached["default"].modules())


@torch.no_grad()
def randomise(model: Any) -> None:
    """Random low-rank pairs; lengths around those of the base."""
    draw = torch.Generator().manual_seed(5)
    for form in forms(model).values():
        for matrix in (form.lora_A, form.lora_B):
            matrix.copy_(torch.randn(matrix.shape, generator=draw) * 0.3)
        form.magnitude.mul_(1 + 0.3 * torch.randn(form.magnitude.shape, generator=draw))


def random_dora(kit: SimpleNamespace, family: str, kind: str = "bare", **fields: Any) -> Any:
    torch.manual_seed(0)
    model = kit.make_model(family, kind)
    dk.attach(model, dk.DoRA(**{"rank": 4, "alpha": 7, **fields}))
    randomise(model)
    return model


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", list(SITES))
def test_equals_peft_in_outputs_and_gradients(
    kit: SimpleNamespace, family: str, rslora: bool
) -> None:
    peft = pytest.importorskip("peft")
    sites, batch = SITES[family], kit.make_batch()
    model = random_dora(kit, family, targets=tuple(sites), rslora=rslora)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=7,
        use_dora=True,
        use_rslora=rslora,
        fan_in_fan_out=family == "gpt2",
        target_modules=[path.format(layer) for path in sites.values() for layer in (0, 1)],
    )
    other = peft.get_peft_model(kit.make_model(family), config).eval()
    theirs, pairs = dict(other.base_model.model.named_parameters()), {}
    for key, form in forms(model).items():
        _, layer, site = key.split(".", 2)
        for name, parameter in form.named_parameters():
            other_name = f"{sites[site].format(layer)}.{PEFTS[name]}"
            theirs[other_name].data.copy_(parameter.data)
            pairs[other_name] = parameter
    assert pairs.keys() == {name for name in theirs if "lora_" in name}
    outputs = [each(**batch)[0] for each in (model, other)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    for name, parameter in pairs.items():
        expected = theirs[name].grad
        torch.testing.assert_close(parameter.grad, expected, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "gpt_neox"])
def test_bit_equal_to_the_base_at_the_start(kit: SimpleNamespace, family: str) -> None:
    model, inputs = kit.make_model(family), kit.make_inputs(family)
    before = kit.out(model, inputs)
    dk.attach(model, dk.DoRA(targets="all"))
    assert torch.equal(kit.out(model, inputs), before)


def test_the_weight_is_the_papers(kit: SimpleNamespace) -> None:
    model = random_dora(kit, "bert", targets=("q",))
    linear = model.encoder.layer[0].attention.self.query
    form = forms(model)["encoder.0.attn.q"]
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    whole = linear.weight + 7 / 4 * form.lora_B @ form.lora_A
    expected = form.magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True)
    torch.testing.assert_close(linear(x), F.linear(x, expected, linear.bias), atol=1e-5, rtol=1e-5)


def test_columns_of_a_fused_projection_have_norms_of_their_own(kit: SimpleNamespace) -> None:
    model = random_dora(kit, "gpt2", targets=("q", "v"))
    fused = model.h[0].attn.c_attn
    x = torch.randn(2, 16, generator=torch.Generator().manual_seed(1))
    with dk.disabled(model):
        plain = fused(x)
    changed = fused(x)
    assert torch.equal(changed[:, 16:32], plain[:, 16:32])
    for start, site in ((0, "q"), (32, "v")):
        form = forms(model)[f"decoder.0.attn.{site}"]
        weight = fused.weight[:, start : start + 16].T + 7 / 4 * form.lora_B @ form.lora_A
        expected = form.magnitude[:, None] * weight / weight.norm(dim=1, keepdim=True)
        expected = F.linear(x, expected, fused.bias[start : start + 16])
        torch.testing.assert_close(changed[:, start : start + 16], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "gpt_neox"])
def test_merged_equals_unmerged(kit: SimpleNamespace, family: str) -> None:
    model, batch = random_dora(kit, family, targets=("q", "v", "o")), kit.make_batch()
    before = kit.snapshot(model)
    expected = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)
    dk.unmerge(model)
    kit.assert_same(before, kit.snapshot(model))


def test_merged_in_a_sum(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.DoRA(rank=2) + dk.LoRA(rank=2) + dk.IA3(targets=("attn.v",)))
    kit.randomise_deltas(model)
    expected = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bf16", "int8", "nf4"])
def test_other_bases(kit: SimpleNamespace, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("bitsandbytes")
    kit.make_model("llama", "classify").save_pretrained(tmp_path)
    model = dk.load_base(tmp_path, kind, task="classify")
    batch = kit.make_batch(labels=True)
    plain = kit.out(model, batch)
    dk.attach(model, dk.DoRA(rank=2, targets="all"), dtype=torch.float32)
    start = kit.out(model, batch)
    assert start.dtype == plain.dtype
    torch.testing.assert_close(start, plain, atol=2e-2, rtol=2e-2)
    for key, form in forms(model).items():
        handle = model.deltakit.handles[key]
        torch.testing.assert_close(form.magnitude.data, weight_matrix(handle.module).norm(dim=1))
    kit.train_steps(model, batch, steps=2, lr=0.05)
    unmerged = kit.out(model, batch)
    assert (unmerged - start).abs().max() > 1e-3
    dk.merge(model, dequantise=True, tolerance=float("inf"))
    torch.testing.assert_close(kit.out(model, batch), unmerged, atol=0.1, rtol=0.1)
    dk.unmerge(model)
    assert torch.equal(kit.out(model, batch), unmerged)


def test_rows_of_one_batch(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch(rows=3)
    for name in "ab":
        dk.attach(model, dk.DoRA(rank=2), name)
    kit.randomise_deltas(model)
    outputs = {}
    for name in "ab":
        dk.activate(model, name)
        outputs[name] = kit.out(model, batch)
    dk.activate(model, dk.PerRow(["b", None, "a"]))
    found = kit.out(model, batch)
    torch.testing.assert_close(found[0], outputs["b"][0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], outputs["a"][2], atol=1e-5, rtol=1e-5)
    dk.activate(model, None)
    torch.testing.assert_close(found[1], kit.out(model, batch)[1], atol=1e-6, rtol=1e-6)


def test_the_norm_is_a_constant_in_the_backward_pass(kit: SimpleNamespace) -> None:
    model = random_dora(kit, "bert", targets=("q",))
    linear, form = model.encoder.layer[0].attention.self.query, forms(model)["encoder.0.attn.q"]
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(1))
    linear(x).square().sum().backward()
    found = form.lora_A.grad.clone()
    whole = linear.weight + 7 / 4 * form.lora_B @ form.lora_A
    gain = (form.magnitude / whole.norm(dim=1)).detach()
    output = F.linear(x, gain[:, None] * whole, linear.bias)
    (expected,) = torch.autograd.grad(output.square().sum(), form.lora_A)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_dropout_acts_on_the_input_of_both_terms(kit: SimpleNamespace) -> None:
    model = random_dora(kit, "bert", targets=("q",), dropout=0.5).train()
    linear, form = model.encoder.layer[0].attention.self.query, forms(model)["encoder.0.attn.q"]
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(9)
    found = linear(x)
    torch.manual_seed(9)
    dropped = F.dropout(x, 0.5)
    whole = linear.weight + 7 / 4 * form.lora_B @ form.lora_A
    change = form.magnitude[:, None] * whole / whole.norm(dim=1, keepdim=True) - linear.weight
    expected = F.linear(x, linear.weight, linear.bias) + F.linear(dropped, change)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_row_of_zeros_stays_finite(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    with torch.no_grad():
        model.encoder.layer[0].attention.self.query.weight[3] = 0
    before = kit.out(model, batch)
    dk.attach(model, dk.DoRA())
    assert torch.equal(kit.out(model, batch), before)


def test_copies_and_files(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = random_dora(kit, "bert", "classify"), kit.make_batch()
    expected = kit.out(model, batch)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.bert.encoder.layer[0].attention.self.query.weight.mul_(2)
    assert not torch.equal(kit.out(twin, batch), expected)
    assert torch.equal(kit.out(model, batch), expected)
    dk.save(model, tmp_path)
    other = kit.make_model("bert", "classify")
    dk.load(other, tmp_path)
    assert torch.equal(kit.out(other, batch), expected)


def test_settings_and_sums(kit: SimpleNamespace) -> None:
    assert dk.parse_method("dora[rank=4,targets=q/k]") == dk.DoRA(rank=4, targets=("q", "k"))
    assert dk.DoRA(rank=4, alpha=8).sized(8) == dk.DoRA(rank=8, alpha=16)
    with pytest.raises(UnknownName, match="embed"):
        dk.DoRA(targets=("embed",))
    with pytest.raises(InvalidConfig, match=r"DoRA\(targets="):
        dk.DoRA(targets=())
    model = random_dora(kit, "bert")
    with pytest.raises(IncompatibleDeltas, match="does not say"):
        dk.task_arithmetic(model, {"default": 2.0}, name="x")


def test_parameters_and_output_dtype(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert").bfloat16()
    dk.attach(model, dk.DoRA(rank=2, targets=("q",)))
    assert dk.summary(model).trained_params == 2 * (2 * 2 * 16 + 16)
    output: Tensor = kit.out(model, kit.make_batch())
    assert output.dtype == torch.bfloat16
