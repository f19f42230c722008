"""Prefix tuning: golden values, live PEFT on decoders, the network and what is left of it."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.core.spec import format_method
from deltakit.errors import DeltakitError, IncompatibleDeltas, InvalidConfig, UnknownName
from deltakit.inject.switch import paused
from deltakit.methods.forms.prefix import Trunk

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
    mine = dict(kit.attachments(ours).get("default").tensors())
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


# ----------------------------------------------------------------------------- shifted positions


@torch.no_grad()
def shifted_pair(kit: SimpleNamespace, family: str, kind: str) -> tuple[Any, Any]:
    """Our model, its positions shifted, and PEFT's with the same values."""
    from peft import PrefixTuningConfig, TaskType, get_peft_model

    task = TaskType.CAUSAL_LM if kind == "causal" else TaskType.SEQ_CLS
    config = PrefixTuningConfig(task_type=task, num_virtual_tokens=LENGTH)
    # The tiny configurations of these two have a key that is Llama's, which PEFT reads.
    extra = {"num_key_value_heads": 4} if family in ("opt", "gpt_neox") else {}
    ours, base = (kit.make_model(family, kind, **extra) for _ in range(2))
    theirs = get_peft_model(base, config).eval()
    whole = theirs.prompt_encoder["default"].embedding.weight.normal_(std=0.5)
    dk.attach(ours, dk.PrefixTuning(length=LENGTH, bottleneck=None, positions="shifted"))
    layers = whole.view(LENGTH, 2, 2, -1).permute(1, 2, 0, 3)
    tensors = kit.attachments(ours).get("default").tensors()
    for (_, memory), values in zip(tensors, layers, strict=True):
        memory.copy_(values)
    return ours, theirs


SHIFTED = [("bert", "classify"), ("roberta", "classify"), ("electra", "classify")]
SHIFTED += [(family, "causal") for family in (*DECODERS, "opt", "qwen3", "phi3", "gpt_neox")]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("family", "kind"), SHIFTED)
def test_shifted_positions_are_pefts(
    kit: SimpleNamespace, family: str, kind: str, attention: str
) -> None:
    ours, theirs = shifted_pair(kit, family, kind)
    ours.set_attn_implementation(attention)
    theirs.base_model.set_attn_implementation(attention)
    batch = kit.make_batch()
    seen = batch["attention_mask"].bool() if kind == "causal" else slice(None)
    for inputs, where in (({"input_ids": batch["input_ids"]}, slice(None)), (batch, seen)):
        mine, other = kit.out(ours, inputs), kit.out(theirs, inputs)
        torch.testing.assert_close(mine[where], other[where], atol=1e-5, rtol=1e-5)
    kept = copy.deepcopy(ours)
    with paused(kept, kit.attachments(kept)):
        del kept.deltakit.attached["default"].leaves["input.0.position_ids"]
    assert (kit.out(kept, batch) - kit.out(ours, batch)).abs().max() > 1e-3


@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("family", [*DECODERS, "opt"])
def test_shifted_generation_is_pefts(kit: SimpleNamespace, family: str, left: bool) -> None:
    ours, theirs = shifted_pair(kit, family, "causal")
    batch = padded_left() if left else {"input_ids": torch.randint(5, 64, (3, 6))}
    batch.pop("position_ids", None)
    batch.setdefault("attention_mask", torch.ones_like(batch["input_ids"]))
    more = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    more |= {"output_logits": True, "return_dict_in_generate": True}
    mine, other = (model.generate(**batch, **more) for model in (ours, theirs))
    assert torch.equal(mine.sequences, other.sequences)
    torch.testing.assert_close(
        torch.stack(mine.logits), torch.stack(other.logits), atol=1e-5, rtol=1e-5
    )
    plain = ours.generate(**batch, **more, use_cache=False)
    torch.testing.assert_close(
        torch.stack(mine.logits), torch.stack(plain.logits), atol=1e-5, rtol=1e-5
    )


def shifted(length: int) -> dk.PrefixTuning:
    return dk.PrefixTuning(length=length, bottleneck=None, positions="shifted")


@pytest.mark.parametrize(
    "family",
    ["bert", "distilbert", "albert", "modernbert", "gpt2", "opt", "mixtral", "gemma3_text"],
)
def test_shifted_is_kept_with_other_position_ids(kit: SimpleNamespace, family: str) -> None:
    model, ids = kit.make_model(family), kit.make_batch()["input_ids"].clamp(min=3)
    dk.attach(model, shifted(4))
    found = kit.out(model, {"input_ids": ids})
    with paused(model, kit.attachments(model)):
        del kit.attachments(model).get("default").leaves["input.0.position_ids"]
    numbers = 4 + torch.arange(ids.shape[1]).expand(len(ids), -1)
    assert torch.equal(kit.out(model, {"input_ids": ids, "position_ids": numbers}), found)
    assert not torch.equal(kit.out(model, {"input_ids": ids}), found)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "opt", "llama", "modernbert"])
def test_shifts_add_up_and_differ_by_row(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    base = kit.out(model, batch)
    dk.attach(model, shifted(3), name="a")
    dk.attach(model, shifted(5), name="b")
    dk.attach(model, dk.PrefixTuning(length=2, bottleneck=None), name="kept")
    kit.randomise_deltas(model)
    alone = {}
    for what in ("a", "b", "kept", dk.Stack("a", "b"), None):
        dk.activate(model, what)
        alone[what] = kit.out(model, batch)
    assert torch.equal(alone[None], base)
    rows = ["b", None, dk.Stack("a", "b")], ["a", "a", "kept"]
    for some in rows:
        dk.activate(model, dk.PerRow(some))
        expected = torch.stack([alone[what][i] for i, what in enumerate(some)])
        torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)
    dk.activate(model, dk.Stack("a", "b"))
    numbers = seen_numbers(model, batch)
    with dk.disabled(model):
        assert torch.equal(numbers, seen_numbers(model, batch) + 8)
        assert torch.equal(kit.out(model, batch), base)
    with pytest.raises(
        dk.DeltakitError, match="'input.0.position_ids' are positions of a sequence"
    ):
        dk.activate(model, dk.Mean("a", "b"))


def seen_numbers(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """What the model makes vectors or rotations of, of the first row, which has no padding."""
    (handle,) = (h for h in dk.resolve(model) if h.site is dk.Site.POSITION_IDS)
    seen: list[Any] = []
    hook = handle.module.register_forward_hook(
        lambda _, args, kwargs, __: seen.extend((*kwargs.values(), *args)), with_kwargs=True
    )
    model(**batch)
    hook.remove()
    return next(t for t in seen if isinstance(t, Tensor) and not t.is_floating_point())[:1]


def test_padding_has_no_position_in_roberta(kit: SimpleNamespace) -> None:
    """Its number is that of the padding token, which PEFT leaves too; here it is attended to."""
    ours, theirs = shifted_pair(kit, "roberta", "classify")
    ids = kit.make_batch()["input_ids"]
    assert (ids == 0).any() and ours.config.pad_token_id == 0
    mine, other = (kit.out(m, {"input_ids": ids}) for m in (ours, theirs))
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def test_a_dropped_layer_leaves_the_shift(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("gpt2"), kit.make_batch()
    plain = seen_numbers(model, batch)
    dk.attach(model, dk.AdapterDrop(shifted(4), random_up_to=2))
    model.train()
    for _ in range(6):
        assert torch.equal(seen_numbers(model, batch), plain + 4)
    dk.drop(model, first=1)
    assert torch.equal(seen_numbers(model.eval(), batch), plain + 4)


def test_prompts_are_shifted_with_the_tokens(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("gpt2"), kit.make_batch()
    plain = seen_numbers(model, batch)
    dk.attach(model, dk.PromptTuning(length=2) + shifted(3))
    assert torch.equal(seen_numbers(model, batch), torch.arange(plain.shape[1] + 2)[None] + 3)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "opt"])
def test_too_long_an_input(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family)
    first = 1 + model.config.pad_token_id if family == "roberta" else 0
    room = model.config.max_position_embeddings - first - 7
    ids = torch.randint(5, 64, (1, 7))
    dk.attach(model, shifted(room))
    model(input_ids=ids)
    dk.detach(model)
    dk.attach(model, shifted(room + 2))
    with pytest.raises(dk.DeltakitError, match=r"has number 41, but the model knows 0 to 39\. Sho"):
        model(input_ids=ids)


@pytest.mark.parametrize("family", ["t5", "bart", "vit", "clip"])
def test_no_positions_to_shift(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family)
    with pytest.raises(dk.DeltakitError, match="no site 'position_ids': its tokens' positions are"):
        dk.attach(model, shifted(3))


def test_shifted_is_saved_deployed_and_written(kit: SimpleNamespace, tmp_path: Any) -> None:
    method = dk.parse_method("prefix[length=3,bottleneck=4,positions=shifted]")
    assert dk.parse_method(format_method(method)) == method
    model, batch = kit.make_model("llama"), kit.make_batch()
    dk.attach(model, method)
    kit.randomise_deltas(model, std=0.5)
    dk.deploy(model)
    assert dk.summary(model).trained_params == 2 * 2 * 3 * 8
    dk.save(model, tmp_path)
    fresh = kit.make_model("llama")
    dk.load(fresh, tmp_path)
    assert torch.equal(kit.out(fresh, batch), kit.out(model, batch))
    assert fresh.deltakit.attached["default"].method.positions == "shifted"


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
    names = [key for key, _ in kit.attachments(model).get("default").tensors() if "trunk" in key]
    assert len(names) == len(set(names)) == 9


def test_it_starts_from_a_normal_embedding(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.PrefixTuning(length=500, bottleneck=4), name="network")
    dk.attach(model, dk.PrefixTuning(length=500, bottleneck=None), name="plain")
    for name, key in (("network", "trunk.embedding"), ("plain", "memory")):
        tensor = dict(kit.attachments(model).get(name).tensors())[f"encoder.0.attn.kv.{key}"]
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
    [
        {"length": 0},
        {"length": 1.5},
        {"bottleneck": 0},
        {"bottleneck": True},
        {"dropout": 1},
        {"positions": "moved"},
    ],
)
def test_settings(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InvalidConfig, match=f"PrefixTuning\\({name}="):
        dk.PrefixTuning(**setting)


# ------------------------------------------------------------------- counted in relative positions


def counted(kit: SimpleNamespace, **more: Any) -> Any:
    """A T5 that generates, with a prefix which relative positions count."""
    import transformers

    config = kit.make_model("t5").config
    torch.manual_seed(5)
    model = transformers.T5ForConditionalGeneration(config).eval()
    dk.attach(model, dk.PrefixTuning(length=3, bottleneck=None, positions="counted", **more))
    return model


def test_keys_and_not_queries_begin_behind_a_counted_prefix(kit: SimpleNamespace) -> None:
    """The bias of token j for query i is that of the distance j + l - i."""
    model, seen = counted(kit), {}
    block = model.encoder.block[0].layer[0].SelfAttention

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        seen["weights"] = output[2]

    hook = block.register_forward_hook(note, with_kwargs=True)
    batch = dict(kit.make_batch())
    model.set_attn_implementation("eager")
    with torch.no_grad():
        states = model.encoder.dropout(model.encoder.embed_tokens(batch["input_ids"]))
        states = model.encoder.block[0].layer[0].layer_norm(states)
        model.encoder(**batch)
        hook.remove()
        n, heads = states.shape[1], block.n_heads
        q, k = (p(states).unflatten(-1, (heads, -1)).transpose(1, 2) for p in (block.q, block.k))
        memory = dict(model.deltakit.get("default").tensors())["encoder.0.attn.kv.memory"][0]
        own = memory.unflatten(-1, (heads, -1)).transpose(0, 1).expand(len(q), -1, -1, -1)
        scores = q @ torch.cat([own, k], 2).mT + block.compute_bias(n, n + 3)
        mask = torch.nn.functional.pad(batch["attention_mask"], (3, 0), value=1)
        scores = scores.masked_fill(mask[:, None, None] == 0, float("-inf"))
        wanted = scores.softmax(-1)[..., 3:]
    torch.testing.assert_close(seen["weights"], wanted, atol=1e-5, rtol=1e-4)


def test_a_counted_prefix_is_generated_with_as_without_a_cache(kit: SimpleNamespace) -> None:
    model, batch = counted(kit), dict(kit.make_batch())
    options = {"max_new_tokens": 5, "do_sample": False, "min_new_tokens": 5}
    one, other = (model.generate(**batch, use_cache=cache, **options) for cache in (True, False))
    assert torch.equal(one, other)


def test_where_a_prefix_cannot_be_counted(kit: SimpleNamespace) -> None:
    with pytest.raises(InvalidConfig, match="no biases of relative positions"):
        dk.attach(kit.make_model("bert"), dk.PrefixTuning(positions="counted"))
    model = counted(kit)
    dk.attach(model, dk.PrefixTuning(length=2, bottleneck=None), name="kept")
    dk.attach(model, dk.PrefixTuning(length=2, positions="counted"), name="shorter")
    with pytest.raises(IncompatibleDeltas, match="counted in the positions of keys"):
        dk.activate(model, dk.Stack("default", "kept"))
    with pytest.raises(IncompatibleDeltas, match="counted in the positions of keys"):
        dk.activate(model, dk.PerRow(["default", "shorter"]))
    with pytest.raises(IncompatibleDeltas, match="counted in the positions of keys"):
        dk.activate(model, dk.PerRow(["default", None]))
