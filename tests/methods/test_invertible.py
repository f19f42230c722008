"""Invertible adapters: inverses, both directions in a model, stacks, rows, files, refusals."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.core.site import Site
from deltakit.errors import (
    IncompatibleDeltas,
    InvalidConfig,
    NotMergeable,
    SiteNotFound,
)
from deltakit.methods.forms.invertible import GLOW, NICE, Uncoupling

BLOCKS = {"nice": NICE, "glow": GLOW}
MODELS = {
    "bert": "BertForMaskedLM",
    "electra": "ElectraForMaskedLM",
    "distilbert": "DistilBertForMaskedLM",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "t5": "T5ForConditionalGeneration",
    "bart": "BartForConditionalGeneration",
}


def coupling(block: str, d: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    made = BLOCKS[block](d, reduction=2, activation="tanh").double()
    randomise(made, seed)
    return made


@torch.no_grad()
def randomise(module: Any, seed: int = 3) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.copy_(0.4 * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))


def language_model(kit: SimpleNamespace, family: str) -> Any:
    import transformers

    config = kit.make_model(family).config
    if family == "electra":
        config.embedding_size = 10
    torch.manual_seed(1)
    return getattr(transformers, MODELS[family])(config).eval()


def batch_of(kit: SimpleNamespace, model: Any) -> dict[str, Tensor]:
    batch = dict(kit.make_batch())
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :4]
    return batch


def forms(model: Any, name: str = "default") -> dict[str, Any]:
    return dict(model.deltakit.attached[name].modules())


@torch.no_grad()
def by_hand(model: Any, couplings: list[Any], batch: dict[str, Tensor]) -> Tensor:
    """The logits with the change made, and undone, by hooks of the test's own."""
    handles = {h.site: h for h in dk.resolve(model)}
    embed, head = handles[Site.EMBED_OUT], handles[Site.UNEMBED]

    def forth(x: Tensor) -> Tensor:
        for each in couplings:
            x = each.transformed(x)
        return x

    def back(module: Any, args: Any) -> Any:
        h = args[0]
        for each in reversed(couplings):
            h = each.inverse(h)
        return (h, *args[1:])

    if embed.hook_kind.value == "output":
        one = embed.module.register_forward_hook(lambda m, a, out: forth(out))
    else:
        one = embed.module.register_forward_pre_hook(lambda m, a: (forth(a[0]), *a[1:]))
    other = head.module.register_forward_pre_hook(back)
    try:
        return model(**batch).logits
    finally:
        one.remove()
        other.remove()


# -------------------------------------------------------------------------------- the couplings


@pytest.mark.parametrize("d", [8, 9])
@pytest.mark.parametrize("block", BLOCKS)
def test_the_inverse_undoes_the_change(block: str, d: int) -> None:
    made = coupling(block, d)
    x = torch.randn(3, 5, d, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    changed = x + made(x)
    assert not torch.allclose(changed, x, atol=0.1)
    torch.testing.assert_close(made.transformed(x), changed, atol=1e-13, rtol=0)
    torch.testing.assert_close(changed + Uncoupling(made)(changed), x, atol=1e-13, rtol=1e-12)
    torch.testing.assert_close(made.transformed(made.inverse(x)), x, atol=1e-13, rtol=1e-12)


def test_nice_is_its_formula() -> None:
    made, x = coupling("nice", 6), torch.randn(4, 6, dtype=torch.float64)

    def bottleneck(net: Any, half: Tensor) -> Tensor:
        inner = torch.tanh(half @ net.down.weight.T + net.down.bias)
        return inner @ net.up.weight.T + net.up.bias

    one = x[:, :3] + bottleneck(made.first, x[:, 3:])
    two = x[:, 3:] + bottleneck(made.second, one)
    torch.testing.assert_close(made.transformed(x), torch.cat([one, two], 1), atol=1e-13, rtol=0)


def test_glow_is_its_formula_and_bounds_the_factors() -> None:
    made, x = coupling("glow", 6), torch.randn(4, 6, dtype=torch.float64)
    x[0] *= 1e4
    s, t = made.first(x[:, 3:]).split(3, 1)
    one = torch.exp(5 * 0.636 * torch.atan(s / 5)) * x[:, :3] + t
    s, t = made.second(one).split(3, 1)
    two = torch.exp(5 * 0.636 * torch.atan(s / 5)) * x[:, 3:] + t
    torch.testing.assert_close(made.transformed(x), torch.cat([one, two], 1), atol=1e-9, rtol=1e-12)
    assert made.transformed(x).isfinite().all()


@pytest.mark.parametrize("block", BLOCKS)
def test_the_number_of_parameters(block: str, kit: SimpleNamespace) -> None:
    made = BLOCKS[block](768, reduction=2, activation="relu")
    wanted = 296_064 if block == "nice" else 296_064 + 2 * (384 * 192 + 384)
    assert sum(p.numel() for p in made.parameters()) == wanted


# --------------------------------------------------------------------------------- in a model


@pytest.mark.parametrize("family", MODELS)
def test_changes_the_embeddings_and_undoes_it_before_the_vocabulary(
    family: str, kit: SimpleNamespace
) -> None:
    model = language_model(kit, family)
    batch = batch_of(kit, model)
    dk.attach(model, dk.InvertibleAdapter(activation="gelu"))
    here = forms(model)
    assert [key for key in here if list(here[key].parameters())] == ["input.0.embed.out"]
    randomise(here["input.0.embed.out"])
    plain = language_model(kit, family)
    with torch.no_grad():
        found = model(**batch).logits
        base = plain(**batch).logits
    assert not torch.allclose(found, base, atol=1e-3)
    wanted = by_hand(plain, [here["input.0.embed.out"]], batch)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_both_directions(kit: SimpleNamespace) -> None:
    model = language_model(kit, "bert")
    dk.attach(model, dk.InvertibleAdapter(block="glow"))
    form = forms(model)["input.0.embed.out"]
    randomise(form)
    batch = batch_of(kit, model)
    model(**batch).logits.square().mean().backward()
    found = {name: p.grad.clone() for name, p in form.named_parameters()}
    direct = language_model(kit, "bert")
    handles = {h.site: h for h in dk.resolve(direct)}
    form.zero_grad()
    handles[Site.EMBED_OUT].module.register_forward_hook(lambda m, a, out: form.transformed(out))
    handles[Site.UNEMBED].module.register_forward_pre_hook(lambda m, a: (form.inverse(a[0]),))
    direct(**batch).logits.square().mean().backward()
    for name, parameter in form.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-3)


def test_a_stack_is_undone_in_reverse(kit: SimpleNamespace) -> None:
    model, plain = language_model(kit, "bert"), language_model(kit, "bert")
    batch = batch_of(kit, model)
    for seed, name in enumerate(("a", "b")):
        dk.attach(model, dk.InvertibleAdapter(), name=name)
        randomise(forms(model, name)["input.0.embed.out"], seed)
    dk.activate(model, dk.Stack("a", "b"))
    with torch.no_grad():
        found = model(**batch).logits
    couplings = [forms(model, name)["input.0.embed.out"] for name in ("a", "b")]
    torch.testing.assert_close(found, by_hand(plain, couplings, batch), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found, by_hand(plain, couplings[::-1], batch), atol=1e-4)


def test_a_language_under_a_task(kit: SimpleNamespace) -> None:
    """MAD-X: the language's inverse acts whatever is stacked on it."""
    model = language_model(kit, "bert")
    batch = batch_of(kit, model)
    dk.attach(model, dk.InvertibleAdapter() + dk.SequentialAdapter(bottleneck=3), name="lang")
    dk.attach(model, dk.SequentialAdapter(bottleneck=3), name="task")
    for name in ("lang", "task"):
        for form in forms(model, name).values():
            randomise(form)
    dk.activate(model, dk.Stack("lang", "task"))
    with torch.no_grad():
        found = model(**batch).logits
    form = forms(model, "lang")["input.0.embed.out"]
    other = language_model(kit, "bert")
    for name in ("lang", "task"):
        dk.attach(other, dk.SequentialAdapter(bottleneck=3), name=name)
        for key, each in forms(other, name).items():
            each.load_state_dict(forms(model, name)[key].state_dict())
    dk.activate(other, dk.Stack("lang", "task"))
    torch.testing.assert_close(found, by_hand(other, [form], batch), atol=1e-5, rtol=1e-5)


def test_rows_have_their_own_inverse(kit: SimpleNamespace) -> None:
    model = language_model(kit, "bert")
    batch = batch_of(kit, model)
    for seed, name in enumerate(("a", "b")):
        dk.attach(model, dk.InvertibleAdapter(), name=name)
        randomise(forms(model, name)["input.0.embed.out"], seed)
    rows = len(batch["input_ids"])
    names = [("a", "b", None)[index % 3] for index in range(rows)]
    alone: dict[Any, Tensor] = {}
    with torch.no_grad():
        for name in ("a", "b"):
            dk.activate(model, name)
            alone[name] = model(**batch).logits
        with dk.disabled(model):
            alone[None] = model(**batch).logits
        dk.activate(model, dk.PerRow(names))
        found = model(**batch).logits
    for index, name in enumerate(names):
        torch.testing.assert_close(found[index], alone[name][index], atol=1e-5, rtol=1e-5)


def test_sums_of_several_are_refused(kit: SimpleNamespace) -> None:
    model = language_model(kit, "bert")
    for name in ("a", "b"):
        dk.attach(model, dk.InvertibleAdapter(), name=name)
    with pytest.raises(IncompatibleDeltas, match="undoes none"):
        dk.activate(model, dk.Mean("a", "b"))
    with pytest.raises(IncompatibleDeltas, match="undoes none"):
        dk.attach(model, dk.InvertibleAdapter() + dk.InvertibleAdapter(), name="both")
    with pytest.raises(IncompatibleDeltas, match="undoes none"):
        dk.attach(model, dk.AdapterFusion("a", "b"), name="fused")


def test_does_not_merge(kit: SimpleNamespace) -> None:
    model = language_model(kit, "bert")
    dk.attach(model, dk.InvertibleAdapter())
    with pytest.raises(NotMergeable, match="does not fold into a weight") as caught:
        dk.merge(model)
    assert "\n" not in str(caught.value)


def test_a_language_goes_under_a_classifier(kit: SimpleNamespace, tmp_path: Path) -> None:
    import transformers

    model = language_model(kit, "bert")
    dk.attach(model, dk.parse_method("invertible[block=glow]+adapter[bottleneck=3]"), name="lang")
    for form in forms(model, "lang").values():
        randomise(form)
    dk.save(model, tmp_path, "lang")
    other = transformers.BertForSequenceClassification(model.config).eval()
    dk.load(other, tmp_path)
    here, there = forms(model, "lang"), forms(other, "lang")
    assert set(here) - set(there) == {"output.0.unembed"}
    for key, form in there.items():
        for name, tensor in form.state_dict().items():
            assert torch.equal(tensor, here[key].state_dict()[name])
    again = language_model(kit, "bert")
    dk.load(again, tmp_path)
    batch = batch_of(kit, model)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch).logits)


def test_half_precision_keeps_its_dtype(kit: SimpleNamespace) -> None:
    model = language_model(kit, "llama").bfloat16()
    dk.attach(model, dk.InvertibleAdapter())
    assert {p.dtype for p in forms(model)["input.0.embed.out"].parameters()} == {torch.float32}
    with torch.no_grad():
        assert model(**batch_of(kit, model)).logits.dtype == torch.bfloat16


def test_generation_with_a_cache_is_generation_without(kit: SimpleNamespace) -> None:
    model = language_model(kit, "gpt2")
    dk.attach(model, dk.InvertibleAdapter())
    randomise(forms(model)["input.0.embed.out"])
    ids = kit.make_batch()["input_ids"][:2, :3]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(ids)
    one, other = (
        model.generate(ids, attention_mask=mask, use_cache=cache, **options)
        for cache in (True, False)
    )
    assert torch.equal(one, other)


def test_settings_and_models_that_do_not_fit(kit: SimpleNamespace) -> None:
    with pytest.raises(InvalidConfig, match="nice, glow"):
        dk.InvertibleAdapter(block="realnvp")  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="leaves no bottleneck"):
        dk.attach(kit.make_model("bert"), dk.InvertibleAdapter(reduction=100))
    with pytest.raises(SiteNotFound, match="where its embeddings end is not known"):
        dk.attach(kit.make_model("opt"), dk.InvertibleAdapter())
