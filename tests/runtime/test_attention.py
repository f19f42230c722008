"""Keys and values beside a model's own: what a prefix must not disturb, and what follows it."""

import copy
import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.errors import IncompatibleDeltas, SiteNotFound
from deltakit.methods.forms.prefix import Prefix, Trunk
from deltakit.runtime.attention import _Attend

DECODERS = ("gpt2", "llama", "qwen3", "opt", "gpt_neox", "gemma3_text")  # gemma's window is 8
ENCODERS = ("bert", "roberta", "distilbert", "albert", "modernbert")
PREFIX = dk.PrefixTuning(length=3, bottleneck=4)


def prefixed(
    kit: SimpleNamespace, family: str, kind: str = "bare", method: Any = PREFIX, **config: Any
) -> Any:
    model = kit.make_model(family, kind, **config)
    dk.attach(model, method)
    kit.randomise_deltas(model, std=0.5)
    return model


def has_prefixes(kit: SimpleNamespace, family: str) -> bool:
    handles = dk.resolve(kit.make_model(family))
    return any(handle.site is dk.Site.ATTN_KV for handle in handles)


def padded_left(length: int = 7) -> dict[str, Tensor]:
    """Rows padded on the left, with the positions that `generate` gives them."""
    mask = torch.tensor([[0] * n + [1] * (length - n) for n in (0, 2, 3)])
    ids = torch.randint(5, 64, mask.shape) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "position_ids": (mask.cumsum(1) - 1).clamp(min=0),
    }


# ------------------------------------------------------------------------- one path, all the masks


def alike(kit: SimpleNamespace, model: Any, batch: Any, eager: Tensor) -> bool:
    """True if the plain model is the same with SDPA: Gemma 2's is not in transformers 5.20."""
    model.set_attn_implementation("sdpa")
    plain = kit.out(model, batch)
    model.set_attn_implementation("eager")
    return torch.allclose(plain, eager, atol=1e-5, rtol=1e-4)


def test_eager_equals_sdpa_in_every_family(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family), kit.make_inputs(family)
    plain = kit.out(model, batch)
    same = model._supports_sdpa and alike(kit, model, batch, plain)
    try:
        dk.attach(model, PREFIX)
    except SiteNotFound:
        assert not has_prefixes(kit, family)
        return
    kit.randomise_deltas(model, std=0.5)
    eager = kit.out(model, batch)
    assert (eager - plain).abs().max() > 0.02
    assert same or not model._supports_sdpa or family == "gemma2"
    if same:
        model.set_attn_implementation("sdpa")
        torch.testing.assert_close(kit.out(model, batch), eager, atol=1e-5, rtol=1e-4)
        model.set_attn_implementation("eager")
    assert torch.equal(kit.out(model, batch), eager)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ENCODERS)
def test_a_padded_row_equals_the_row_alone(
    kit: SimpleNamespace, family: str, attention: str
) -> None:
    if not has_prefixes(kit, family):
        pytest.skip(f"{family} does not call the attention interface")
    model, batch = prefixed(kit, family), kit.make_batch()
    model.set_attn_implementation(attention)
    whole = kit.out(model, batch)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = kit.out(model, {"input_ids": batch["input_ids"][row : row + 1, :length]})
        torch.testing.assert_close(whole[row, :length], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", DECODERS)
def test_a_row_padded_on_the_left_equals_the_row_alone(
    kit: SimpleNamespace, family: str, attention: str
) -> None:
    model, batch = prefixed(kit, family, "causal"), padded_left()
    model.set_attn_implementation(attention)
    whole = kit.out(model, batch)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        alone = kit.out(model, {"input_ids": batch["input_ids"][row : row + 1, -length:]})
        torch.testing.assert_close(whole[row, -length:], alone[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", DECODERS)
def test_the_future_stays_unseen(
    kit: SimpleNamespace, family: str, attention: str, masked: bool
) -> None:
    """With no mask given, SDPA is told to be causal, which would hide the prefix's columns."""
    model = prefixed(kit, family, "causal")
    model.set_attn_implementation(attention)
    ids = torch.randint(5, 64, (2, 8))
    changed = ids.clone()
    changed[:, 5:] = (changed[:, 5:] - 5 + 11) % 59 + 5
    mask = {"attention_mask": torch.ones_like(ids)} if masked else {}
    one, two = (kit.out(model, {"input_ids": each, **mask}) for each in (ids, changed))
    torch.testing.assert_close(one[:, :5], two[:, :5], atol=1e-6, rtol=0)
    assert (one[:, 5:] - two[:, 5:]).abs().max() > 0.01


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "opt", "bart"])
def test_no_position_is_lost(kit: SimpleNamespace, family: str) -> None:
    """A sequence as long as the model's context, with a prefix nearly as long as that."""
    model = prefixed(kit, family, method=dk.PrefixTuning(length=30, bottleneck=None))
    assert model.config.max_position_embeddings == 40
    assert kit.out(model, {"input_ids": torch.randint(5, 64, (2, 40))}).shape == (2, 40, 16)


@pytest.mark.parametrize(
    ("family", "attention"),
    [*((family, "sdpa") for family in (*DECODERS, "t5", "bart")), ("llama", "eager")],
)
def test_cached_generation_equals_uncached(
    kit: SimpleNamespace, family: str, attention: str
) -> None:
    kind = "seq2seq" if family in ("t5", "bart") else "causal"
    model = prefixed(kit, family, kind)
    model.set_attn_implementation(attention)
    ids, mask = (padded_left()[key] for key in ("input_ids", "attention_mask"))
    settings = {
        "attention_mask": mask,
        "max_new_tokens": 4,
        "do_sample": False,
        "eos_token_id": None,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    cached, uncached = (model.generate(ids, use_cache=use, **settings) for use in (True, False))
    assert torch.equal(cached.sequences, uncached.sequences)
    for one, two in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=1e-4)
    with dk.disabled(model):
        plain = model.generate(ids, **settings)
    assert (plain.logits[0] - cached.logits[0]).abs().max() > 0.01


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_mask_of_four_axes(kit: SimpleNamespace, attention: str) -> None:
    """A mask that the user made is widened like the model's own."""
    model, ids = prefixed(kit, "llama", "causal"), torch.randint(5, 64, (2, 6))
    model.set_attn_implementation(attention)
    expected = kit.out(model, {"input_ids": ids})
    seen = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 1, 6, 6)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    given = kit.out(model, {"input_ids": ids, "attention_mask": mask})
    torch.testing.assert_close(given, expected, atol=1e-6, rtol=0)


# ------------------------------------------------------------------------------ while training


def gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
def test_gradient_checkpointing(
    kit: SimpleNamespace, family: str, attention: str, reentrant: bool
) -> None:
    model = prefixed(kit, family, "classify")
    batch = {**kit.make_inputs(family, "classify"), "labels": torch.arange(3)}
    model.set_attn_implementation(attention)
    model.train().config.use_cache = False
    plain = gradients(model, batch)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == plain.keys()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    again = gradients(model, batch)
    assert plain.keys() == again.keys()
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bf16_stays_bf16(kit: SimpleNamespace, family: str, attention: str) -> None:
    for dtype in (torch.bfloat16, None):
        model = kit.make_model(family).to(torch.bfloat16)
        model.set_attn_implementation(attention)
        dk.attach(model, PREFIX, dtype=dtype)
        kinds = {p.dtype for p in model.deltakit.parameters()}
        assert kinds == {dtype or torch.float32}
        output = model(**kit.make_inputs(family))
        assert kit.first(output).dtype is torch.bfloat16


class CountTrunk:
    """Counts how often the shared network runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        forward = Trunk.forward

        def counted(trunk: Trunk) -> Tensor:
            self.calls += 1
            return forward(trunk)

        monkeypatch.setattr(Trunk, "forward", counted)

    def since(self) -> int:
        calls, self.calls = self.calls, 0
        return calls


def test_in_evaluation_it_is_computed_once(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = prefixed(kit, "bert", "classify"), kit.make_batch(labels=True)
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    count = CountTrunk(monkeypatch)
    first = kit.out(model, batch)
    assert count.since() == 2  # once a layer
    for _ in range(3):
        assert torch.equal(kit.out(model, batch), first)
    with torch.inference_mode():
        assert torch.equal(model(**batch).logits, first)
    assert count.since() == 0

    model(**batch).loss.backward()
    optimiser.step()
    count.since()
    second = kit.out(model, batch)
    assert count.since() == 2 and not torch.equal(first, second)

    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in state:
        if "deltakit" in name:
            state[name] = state[name] * 0.5
    model.load_state_dict(state)
    third = kit.out(model, batch)
    assert count.since() == 2 and not torch.equal(second, third)

    half = kit.out(model.to(torch.bfloat16), batch)
    assert count.since() == 2 and half.dtype is torch.bfloat16
    torch.testing.assert_close(kit.out(model.float(), batch), third, atol=0.05, rtol=0.05)
    assert count.since() == 2


@pytest.mark.parametrize("change", ["fused", "data"])
def test_an_evaluation_follows_every_write(kit: SimpleNamespace, change: str) -> None:
    """Fused optimisers and averages of weights change values without autograd's counting it."""
    model, batch = prefixed(kit, "bert", "classify"), kit.make_batch(labels=True)
    own = list(model.deltakit.parameters())
    optimiser = torch.optim.AdamW(own, lr=0.5, fused=True)
    model(**batch).loss.backward()
    first = kit.out(model.eval(), batch)
    if change == "fused":
        optimiser.step()
    else:
        for parameter in own:
            parameter.data.mul_(0.5)
    second = kit.out(model, batch)
    assert not torch.equal(first, second)
    assert torch.equal(second, model(**batch).logits)


def test_dropout_without_gradients(kit: SimpleNamespace) -> None:
    """Reentrant checkpointing runs the first pass without gradients, and drops out in it."""
    model = kit.make_model("bert")
    dk.attach(model, dk.PrefixTuning(length=3, bottleneck=4, dropout=0.5))
    model.train()
    assert not torch.equal(kit.out(model, kit.make_batch()), kit.out(model, kit.make_batch()))


def test_another_delta_and_back_is_computed_anew_or_the_same(kit: SimpleNamespace) -> None:
    model, batch = prefixed(kit, "bert"), kit.make_batch()
    first = kit.out(model, batch)
    dk.attach(model, PREFIX, name="other")
    other = kit.out(model, batch)
    for name, expected in (("default", first), ("other", other), ("default", first)):
        dk.activate(model, name)
        assert torch.equal(kit.out(model, batch), expected)
    dk.activate(model, dk.Stack("default", "other"))
    both = kit.out(model, batch)
    assert not torch.equal(both, first) and not torch.equal(both, other)


@pytest.mark.parametrize("spec", ["prefix[length=3,bottleneck=4]", "mam[length=3,bottleneck=4]"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_resumed_training_is_the_uninterrupted_one(
    kit: SimpleNamespace, tmp_path: Path, family: str, spec: str
) -> None:
    def optimiser_of(model: Any) -> Any:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return torch.optim.AdamW([p for _, p in sorted(named)], lr=0.02)

    def steps(model: Any, optimiser: Any, count: int) -> None:
        model.train()
        for _ in range(count):
            optimiser.zero_grad()
            model(**batch).loss.backward()
            optimiser.step()
        model.eval()

    batch = kit.make_batch(labels=True)
    whole = kit.make_model(family, "classify")
    dk.attach(whole, dk.parse_method(spec))
    optimiser = optimiser_of(whole)
    steps(whole, optimiser, 3)
    dk.save(whole, tmp_path)
    torch.save(optimiser.state_dict(), tmp_path / "optimiser.pt")
    kit.out(whole, batch)  # an evaluation in between
    steps(whole, optimiser, 3)

    resumed = kit.make_model(family, "classify")
    dk.load(resumed, tmp_path)
    optimiser = optimiser_of(resumed)
    optimiser.load_state_dict(torch.load(tmp_path / "optimiser.pt"))
    steps(resumed, optimiser, 3)
    one, two = whole.state_dict(), resumed.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert torch.equal(kit.out(whole, batch), kit.out(resumed, batch))


# ------------------------------------------------------------------------ what must be given back


def settings_of(model: Any) -> dict[str, Any]:
    """All that the model's config says, and every attribute of every module."""
    return {
        "config": json.loads(model.config.to_json_string(use_diff=False)),
        "attention": model.config._attn_implementation,
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
    }


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5", "bart", "clip"])
def test_detached_and_disabled_are_the_base(
    kit: SimpleNamespace, family: str, attention: str
) -> None:
    model, batch = kit.make_model(family), kit.make_inputs(family)
    model.set_attn_implementation(attention)
    plain, before, settings = kit.out(model, batch), kit.snapshot(model), settings_of(model)
    dk.attach(model, PREFIX)
    with dk.disabled(model):
        assert model.config._attn_implementation == attention
        assert torch.equal(kit.out(model, batch), plain)
    dk.activate(model, None)
    assert torch.equal(kit.out(model, batch), plain)
    dk.activate(model, "default")
    assert not torch.equal(kit.out(model, batch), plain)
    dk.detach(model)
    assert torch.equal(kit.out(model, batch), plain)
    kit.assert_same(before, kit.snapshot(model))
    assert settings_of(model) == settings


def test_an_implementation_that_is_set_while_active_is_kept(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, PREFIX)
    eager = kit.out(model, batch)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(kit.out(model, batch), eager, atol=1e-5, rtol=1e-4)
    dk.detach(model)
    assert model.config._attn_implementation == "sdpa"


class Failing(Prefix):
    """A prefix that cannot be made for the second layer."""

    made = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        type(self).made += 1
        if type(self).made == 2:
            raise RuntimeError("no more")


def test_a_failed_attach_leaves_nothing(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kit.make_model("bert")
    before, settings = kit.snapshot(model), settings_of(model)
    monkeypatch.setattr("deltakit.methods.forms.prefix.Prefix", Failing)
    with pytest.raises(RuntimeError, match="no more"):
        dk.attach(model, dk.PrefixTuning(bottleneck=None))
    kit.assert_same(before, kit.snapshot(model))
    assert settings_of(model) == settings


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_an_implementation_that_it_does_not_know_is_refused(
    kit: SimpleNamespace, family: str
) -> None:
    model = kit.make_model(family)
    model.config._attn_implementation_internal = "flash_attention_2"
    before, settings = kit.snapshot(model), settings_of(model)
    message = "attention is 'flash_attention_2'; .* sdpa and eager.*set_attn_implementation"
    with pytest.raises(IncompatibleDeltas, match=message):
        dk.attach(model, PREFIX)
    kit.assert_same(before, kit.snapshot(model))
    assert settings_of(model) == settings
    dk.attach(model, dk.LoRA())  # what adds no keys does not mind


def test_an_unknown_implementation_set_while_active_is_refused(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, PREFIX)
    expected = kit.out(model, batch)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(IncompatibleDeltas, match="'flash_attention_2'"):
        model.encoder.layer[0].attention.self(torch.randn(1, 3, 16))
    model.set_attn_implementation("eager")
    assert torch.equal(kit.out(model, batch), expected)


@pytest.mark.parametrize("family", ["bert", "llama", "bart"])
def test_the_models_own_files_do_not_know_of_it(
    kit: SimpleNamespace, tmp_path: Path, family: str
) -> None:
    from transformers import AutoModel

    model, batch = kit.make_model(family), kit.make_inputs(family)
    model.save_pretrained(tmp_path / "before")
    plain = kit.out(model, batch)
    dk.attach(model, PREFIX)
    model.save_pretrained(tmp_path / "with", state_dict={
        name: tensor for name, tensor in model.state_dict().items() if "deltakit" not in name
    })  # fmt: skip
    texts = [(tmp_path / f / "config.json").read_text() for f in ("before", "with")]
    assert texts[0] == texts[1] and "deltakit" not in texts[1]
    again = AutoModel.from_pretrained(tmp_path / "with", attn_implementation="eager")
    assert torch.equal(kit.out(again, batch), plain)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_weights_have_the_models_shape_and_no_position_is_shifted(
    kit: SimpleNamespace, family: str
) -> None:
    model, batch = prefixed(kit, family), kit.make_batch()
    weights = model(**batch, output_attentions=True).attentions
    with dk.disabled(model):
        own = model(**batch, output_attentions=True).attentions
    assert [w.shape for w in weights] == [w.shape for w in own] == [(3, 4, 7, 7)] * 2
    for mine, plain in zip(weights, own, strict=True):
        torch.testing.assert_close(plain.sum(-1), torch.ones(3, 4, 7))
        share = mine.sum(-1)  # the rest of the softmax is the prefix's
        assert ((share > 0) & (share < 1)).all()
    # Among the tokens the first layer weighs as before, positions and all.
    among = weights[0] / weights[0].sum(-1, keepdim=True)
    torch.testing.assert_close(among, own[0], atol=1e-6, rtol=1e-4)


# ----------------------------------------------------------------------------- copies of the model


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_deep_copy_is_independent(kit: SimpleNamespace, family: str) -> None:
    model, batch = prefixed(kit, family), kit.make_batch()
    expected = kit.out(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(kit.out(twin, batch), expected)
    with torch.no_grad():
        for parameter in twin.deltakit.parameters():
            parameter.mul_(0.5)
    changed = kit.out(twin, batch)
    assert not torch.equal(changed, expected)
    assert torch.equal(kit.out(model, batch), expected)
    dk.detach(model)
    assert torch.equal(kit.out(twin, batch), changed)
    assert model.config._attn_implementation == "eager"
    dk.detach(twin)
    assert torch.equal(kit.out(twin, batch), kit.out(model, batch))


def test_a_pickle_runs_where_nothing_was_attached_yet(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    model, batch = prefixed(kit, "bert"), kit.make_batch()
    expected = kit.out(model, batch)
    file = io.BytesIO()
    torch.save(model, file)
    for interface in (AttentionInterface, AttentionMaskInterface):  # as in a fresh process
        plain = {k: v for k, v in interface._global_mapping.items() if "deltakit" not in k}
        monkeypatch.setattr(interface, "_global_mapping", plain)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert torch.equal(kit.out(again, batch), expected)
    dk.detach(again)
    assert again.config._attn_implementation == "eager"


def test_a_second_model_of_the_same_config_is_left_alone(kit: SimpleNamespace) -> None:
    """Two models may share one config object: the other one runs as ever."""
    model, batch = kit.make_model("bert"), kit.make_batch()
    other = type(model)(model.config).eval()
    assert other.config is model.config
    expected = kit.out(other, batch)
    dk.attach(model, PREFIX)
    assert torch.equal(kit.out(other, batch), expected)
    dk.detach(model)
    assert torch.equal(kit.out(other, batch), expected)


def test_a_module_without_the_interface() -> None:
    with pytest.raises(IncompatibleDeltas, match="Linear has no attention function"):
        nothing = torch.zeros(1, 1, 1, 1)
        _Attend("eager")(nn.Linear(1, 1), nothing, nothing, nothing, None)
