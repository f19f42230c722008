"""Sequential adapters: golden values, the formulas written out, initialisation, settings."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deltakit as dk
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import ACTIVATION_NAMES
from deltakit.methods.forms.adapter import ACTIVATIONS, Bottleneck


def tensors(model: Any, name: str = "default") -> dict[str, Tensor]:
    return dict(model.deltakit.attached[name].tensors())


def bottleneck(h: Tensor, weights: dict[str, Tensor], key: str, f: Any) -> Tensor:
    """f(h W_down + b_down) W_up + b_up, by plain matrix products."""
    down, up = weights[f"{key}.down.weight"], weights[f"{key}.up.weight"]
    inner = f(h @ down.T + weights[f"{key}.down.bias"])
    return inner @ up.T + weights[f"{key}.up.bias"]


def capture(model: Any, path: str, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the module at `path` is given and returns, as seen after all hooks on it."""
    seen: dict[str, Tensor] = {}

    def hook(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["x"] = args[0] if args else kwargs["hidden_states"]
        seen["y"] = output[0] if isinstance(output, tuple) else output

    handle = model.get_submodule(path).register_forward_hook(hook, with_kwargs=True)
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen


def test_golden_seq_bn(golden: Any, kit: SimpleNamespace) -> None:
    model = golden.model()
    dk.attach(model, dk.SequentialAdapter(reduction=4), name="a")
    golden.fill(model, "seq_bn", ffn="block.out")
    expected = golden.tensors["seq_bn.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)


def test_golden_double_seq_bn(golden: Any, kit: SimpleNamespace) -> None:
    model = golden.model()
    method = dk.SequentialAdapter(placement="houlsby", reduction=4, activation="swish")
    dk.attach(model, method, name="a")
    golden.fill(model, "double_seq_bn", ffn="ffn.out")
    expected = golden.tensors["double_seq_bn.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)


def test_golden_stack(golden: Any, kit: SimpleNamespace) -> None:
    model = golden.model()
    dk.attach(model, dk.SequentialAdapter(reduction=4), name="a")
    dk.attach(model, dk.SequentialAdapter(reduction=8), name="b")
    golden.fill(model, "stack", ffn="block.out")
    dk.activate(model, dk.Stack("a", "b"))
    expected = golden.tensors["stack.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)
    dk.activate(model, dk.Stack("b", "a"))
    assert (kit.out(model, golden.batch) - expected).abs().max() > 1e-3


def test_golden_base(golden: Any, kit: SimpleNamespace) -> None:
    expected = golden.tensors["output"]
    torch.testing.assert_close(kit.out(golden.model(), golden.batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_pfeiffer_post_ln_formula(kit: SimpleNamespace, activation: str, scale: float) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.SequentialAdapter(reduction=4, activation=activation, scale=scale))
    kit.randomise_deltas(model)
    seen = capture(model, "encoder.layer.1.output.LayerNorm", batch)
    norm = model.encoder.layer[1].output.LayerNorm

    def ln(x: Tensor) -> Tensor:
        return F.layer_norm(x, (16,), norm.weight, norm.bias, norm.eps)

    s = seen["x"]
    f = {"relu": torch.relu, "gelu": F.gelu, "tanh": torch.tanh}[activation]
    expected = ln(s + scale * bottleneck(ln(s), tensors(model), "encoder.1.block.out", f))
    torch.testing.assert_close(seen["y"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "path"), [("llama", "layers.0"), ("gpt2", "h.0")])
def test_pfeiffer_pre_ln_formula(kit: SimpleNamespace, family: str, path: str) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    plain = capture(model, path, batch)["y"]
    dk.attach(model, dk.SequentialAdapter(reduction=4))
    kit.randomise_deltas(model)
    changed = capture(model, path, batch)["y"]
    change = bottleneck(plain, tensors(model), "decoder.0.block.out", torch.relu)
    torch.testing.assert_close(changed, plain + change, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_houlsby_post_ln_formula(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    dk.attach(model, dk.SequentialAdapter(placement="houlsby", reduction=4))
    kit.randomise_deltas(model)
    weights = tensors(model)
    for block, key in (("attention.output", "attn.out"), ("output", "ffn.out")):
        path = f"encoder.layer.0.{block}"
        dense = capture(model, f"{path}.dense", batch)["y"]
        module = model.get_submodule(path)
        seen: dict[str, Tensor] = {}
        hook = module.register_forward_pre_hook(lambda _m, args, s=seen: s.update(x=args[1]))
        y = capture(model, path, batch)["y"]
        hook.remove()
        norm = module.LayerNorm
        summed = dense + bottleneck(dense, weights, f"encoder.0.{key}", F.gelu) + seen["x"]
        expected = F.layer_norm(summed, (16,), norm.weight, norm.bias, norm.eps)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("family", "attention", "ffn"),
    [("llama", "layers.0.self_attn", "layers.0.mlp"), ("gpt2", "h.0.attn", "h.0.mlp")],
)
def test_houlsby_pre_ln_formula(
    kit: SimpleNamespace, family: str, attention: str, ffn: str
) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    plain = capture(model, attention, batch)["y"]
    dk.attach(model, dk.SequentialAdapter(placement="houlsby", reduction=4))
    kit.randomise_deltas(model)
    weights = tensors(model)
    changed = capture(model, attention, batch)["y"]
    expected = plain + bottleneck(plain, weights, "decoder.0.attn.out", F.gelu)
    torch.testing.assert_close(changed, expected, atol=1e-4, rtol=1e-5)
    seen = capture(model, ffn, batch)
    with dk.disabled(model), torch.no_grad():
        plain = model.get_submodule(ffn)(seen["x"])
    expected = plain + bottleneck(plain, weights, "decoder.0.ffn.out", F.gelu)
    torch.testing.assert_close(seen["y"], expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("placement", ["pfeiffer", "houlsby"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "gpt2", "llama"])
def test_lora_initialisation_starts_at_the_identity(
    kit: SimpleNamespace, family: str, placement: str
) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    before = kit.out(model, batch)
    dk.attach(model, dk.SequentialAdapter(placement=placement, initialisation="lora"))
    assert torch.equal(kit.out(model, batch), before)


def test_initialisations_have_their_papers_spread() -> None:
    def weights(how: Any) -> tuple[Tensor, Tensor]:
        form = Bottleneck(256, 256, bottleneck=128, activation="relu", initialisation=how)
        assert not form.down.bias.any() and not form.up.bias.any()
        return form.down.weight, form.up.weight

    down, up = weights("normal")
    assert down.std().item() == pytest.approx(0.02, rel=0.05)
    assert up.std().item() == pytest.approx(0.02, rel=0.05)
    down, up = weights("truncated_normal")
    assert max(down.abs().max(), up.abs().max()) <= 0.02
    assert down.std().item() == pytest.approx(0.0088, rel=0.05)  # 1e-2 cut at two sigma
    down, up = weights("lora")
    assert not up.any()
    assert down.abs().max() <= 1 / 16  # uniform within 1 / sqrt(fan in)


def test_activations_match_transformers() -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-4, 4, 33)
    assert tuple(ACTIVATIONS) == ACTIVATION_NAMES
    for name in set(ACTIVATIONS) - {"identity"}:
        torch.testing.assert_close(ACTIVATIONS[name](x), ACT2FN[name](x), atol=1e-6, rtol=1e-6)
    assert torch.equal(ACTIVATIONS["identity"](x), x)


def test_placements_default_activations() -> None:
    handle = SimpleNamespace(d_in=8, d_out=8)
    pfeiffer = dk.SequentialAdapter(reduction=2).form(handle)
    houlsby = dk.SequentialAdapter(placement="houlsby", reduction=2).form(handle)
    assert pfeiffer.activation is ACTIVATIONS["relu"]
    assert houlsby.activation is ACTIVATIONS["gelu"]


def test_dropout_acts_in_training_only(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.SequentialAdapter(reduction=4, dropout=0.5))
    kit.randomise_deltas(model)
    model.eval()
    quiet = kit.out(model, batch)
    assert torch.equal(kit.out(model, batch), quiet)
    model.train()
    assert not torch.equal(kit.out(model, batch), quiet)


def test_a_delta_takes_the_mode_of_its_model(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.SequentialAdapter(reduction=4, dropout=0.5))
    kit.randomise_deltas(model)
    assert not model.training
    assert torch.equal(kit.out(model, batch), kit.out(model, batch))


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_train_norms_trains_exactly_the_norms(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family, "classify"), kit.make_batch(labels=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    dk.attach(model, dk.SequentialAdapter(placement="houlsby", train_norms=True))
    base = dict(model.base_model.named_parameters())
    trained = {n for n, p in base.items() if p.requires_grad and "deltakit" not in n}
    norms = {n for n in base if "norm" in n.lower() or "ln_" in n}
    assert norms and trained == norms
    kit.train_steps(model, batch, steps=1)
    dk.detach(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"placement": "pfiefer"}, r"placement='pfiefer'.*is one of houlsby, ffn, pfeiffer"),
        ({"reduction": 0}, r"reduction=0.*above zero"),
        ({"reduction": float("nan")}, r"reduction=nan.*above zero"),
        ({"reduction": True}, r"reduction=True"),
        ({"scale": -1.0}, r"scale=-1.0"),
        ({"scale": float("inf")}, r"scale=inf"),
        ({"bottleneck": 2.5}, r"bottleneck=2.5.*whole number"),
        ({"bottleneck": 0}, r"bottleneck=0"),
        ({"activation": "rellu"}, r"activation='rellu'.*relu"),
        ({"initialisation": "zeros"}, r"initialisation='zeros'.*truncated_normal"),
        ({"dropout": 1.0}, r"dropout=1.0.*below 1"),
        ({"dropout": -0.1}, r"dropout=-0.1"),
        ({"train_norms": "no"}, r"train_norms='no'"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        dk.SequentialAdapter(**fields)


def test_reduction_that_leaves_no_width(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    before = kit.snapshot(model)
    with pytest.raises(InvalidConfig, match="reduction=64 leaves no bottleneck.*width 16.*at most"):
        dk.attach(model, dk.SequentialAdapter(reduction=64))
    kit.assert_same(before, kit.snapshot(model))


def test_short_names_are_presets() -> None:
    assert dk.parse_method("adapter") == dk.SequentialAdapter()
    assert dk.parse_method("pfeiffer") == dk.SequentialAdapter(placement="pfeiffer")
    assert dk.parse_method("houlsby") == dk.SequentialAdapter(placement="houlsby")
