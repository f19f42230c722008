"""Prompt tuning: live PEFT on decoders, what stands behind the model, generation, the start."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

import deltakit as dk
from deltakit.errors import IncompatibleDeltas, InvalidConfig

LENGTH = 3


def prompted(kit: SimpleNamespace, family: str, kind: str = "bare", **config: Any) -> Any:
    model = kit.make_model(family, kind, **config)
    dk.attach(model, dk.PromptTuning(length=LENGTH))
    kit.randomise_deltas(model, std=0.5)
    return model


def rows(model: Any) -> Tensor:
    ((_, tensor),) = model.deltakit.attached["default"].tensors()
    return tensor


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "mistral"])
def test_equals_live_peft(kit: SimpleNamespace, family: str, attention: str) -> None:
    """Positions count from the first row of P in both, where the caller gives none.

    PEFT has logits for P too, and ignores positions that it is given; here P has none, and what is
    given is moved behind P.
    """
    from peft import PromptTuningConfig, TaskType, get_peft_model

    ours = prompted(kit, family, "causal")
    config = PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=LENGTH)
    theirs = get_peft_model(kit.make_model(family, "causal"), config).eval()
    with torch.no_grad():
        theirs.prompt_encoder["default"].embedding.weight.copy_(rows(ours))
    ours.set_attn_implementation(attention)
    theirs.base_model.set_attn_implementation(attention)
    batch = kit.make_batch()
    for given in (batch, {"input_ids": batch["input_ids"]}):
        mine, other = kit.out(ours, given), kit.out(theirs, given)
        assert mine.shape == (3, 7, 64) and other.shape == (3, 7 + LENGTH, 64)
        torch.testing.assert_close(mine, other[:, LENGTH:], atol=1e-5, rtol=1e-5)
    # The last row of P predicts the first token in PEFT's loss; here the loss is the tokens' own.
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    without_first = labels.clone()
    without_first[:, 0] = -100
    with torch.no_grad():
        mine, other = (
            model(**batch, labels=each).loss
            for model, each in ((ours, labels), (theirs, without_first))
        )
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)


def with_rows(model: Any, batch: dict[str, Tensor], position: int) -> Tensor:
    """What the plain model makes of the sequence with P in it."""
    tokens = model.get_input_embeddings()(batch["input_ids"])
    part = rows(model).expand(len(tokens), -1, -1)
    embedded = torch.cat([tokens[:, :position], part, tokens[:, position:]], 1)
    mask = batch["attention_mask"]
    ones = mask.new_ones(len(mask), LENGTH)
    mask = torch.cat([mask[:, :position], ones, mask[:, position:]], 1)
    with dk.disabled(model), torch.no_grad():
        states = model(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
    return torch.cat([states[:, :position], states[:, position + LENGTH :]], 1)


@pytest.mark.parametrize(
    ("family", "position"),
    [("bert", 1), ("distilbert", 1), ("electra", 1), ("deberta-v2", 1), ("modernbert", 1),
     ("gpt2", 0), ("llama", 0), ("bloom", 0), ("opt", 0)],
)  # fmt: skip
def test_it_stands_among_the_tokens(kit: SimpleNamespace, family: str, position: int) -> None:
    model, batch = prompted(kit, family), kit.make_batch()
    expected, seen = with_rows(model, batch, position), batch["attention_mask"].bool()
    mine = kit.out(model, batch)
    torch.testing.assert_close(mine[seen], expected[seen], atol=1e-5, rtol=1e-5)
    embedded = model.get_input_embeddings()(batch["input_ids"])
    given = {"inputs_embeds": embedded, "attention_mask": batch["attention_mask"]}
    torch.testing.assert_close(kit.out(model, given)[seen], mine[seen], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_what_stands_behind_the_model_sees_the_tokens_alone(
    kit: SimpleNamespace, family: str
) -> None:
    model, batch = prompted(kit, family), kit.make_batch()
    output = model(**batch, output_hidden_states=True)
    assert output.last_hidden_state.shape == (3, 7, 16)
    assert [h.shape for h in output.hidden_states] == [(3, 7, 16)] * 3
    one = model(batch["input_ids"], batch["attention_mask"], return_dict=False)
    assert torch.equal(one[0], output.last_hidden_state)
    classifier = prompted(kit, family, "classify")
    assert kit.out(classifier, batch).shape == (3, 3)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "t5"])
def test_a_padded_row_equals_the_row_alone(kit: SimpleNamespace, family: str) -> None:
    model, batch = prompted(kit, family), kit.make_inputs(family)
    whole = kit.out(model, batch)
    for row, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        one = {key: tensor[row : row + 1] for key, tensor in batch.items()}
        for key in ("input_ids", "attention_mask"):
            one[key] = one[key][:, :length]
        alone = kit.out(model, one)
        expected = whole[row : row + 1, : alone.shape[1]]
        torch.testing.assert_close(alone, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "t5", "bart"])
def test_cached_generation_equals_uncached(kit: SimpleNamespace, family: str) -> None:
    kind = "seq2seq" if family in ("t5", "bart") else "causal"
    model = prompted(kit, family, kind)
    mask = torch.tensor([[0] * n + [1] * (7 - n) for n in (0, 2, 3)])
    ids = torch.randint(5, 64, mask.shape) * mask
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
    if kind == "causal":  # and each row as if it were alone
        alone = model.generate(ids[2:, 3:], **{**settings, "attention_mask": mask[2:, 3:]})
        torch.testing.assert_close(alone.logits[-1][0], cached.logits[-1][2], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["causal", "classify"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt", "bloom", "gpt_neox", "phi3", "gemma2"])
def test_every_head_is_reached(kit: SimpleNamespace, family: str, kind: str) -> None:
    """Some heads call a part of the base model, not the base model itself."""
    model, batch = prompted(kit, family, kind), kit.make_batch()
    with_prompt = kit.out(model, batch)
    with dk.disabled(model):
        assert (kit.out(model, batch) - with_prompt).abs().max() > 0.01


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradient_checkpointing(kit: SimpleNamespace, family: str, reentrant: bool) -> None:
    model, batch = prompted(kit, family, "classify"), kit.make_batch(labels=True)
    model.train().config.use_cache = False
    grads = []
    for _ in range(2):
        model.zero_grad()
        model(**batch).loss.backward()
        grads.append(rows(model).grad.clone())
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    assert grads[0].abs().max() > 0
    torch.testing.assert_close(grads[1], grads[0], atol=1e-6, rtol=1e-5)


def test_it_takes_positions_of_the_context(kit: SimpleNamespace) -> None:
    model = prompted(kit, "bert")
    room = model.config.max_position_embeddings
    assert kit.out(model, {"input_ids": torch.randint(5, 64, (2, room - LENGTH))}).shape[1] == 37
    with pytest.raises((RuntimeError, IndexError)):
        kit.out(model, {"input_ids": torch.randint(5, 64, (2, room))})


def test_it_starts_from_rows_of_the_vocabulary(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.PromptTuning(length=50))
    vocabulary = {tuple(row) for row in model.get_input_embeddings().weight.tolist()}
    drawn = [tuple(row) for row in rows(model).tolist()]
    assert set(drawn) <= vocabulary and len(set(drawn)) > 10


def test_a_mask_of_four_axes_is_refused(kit: SimpleNamespace) -> None:
    model = prompted(kit, "llama")
    mask = torch.zeros(1, 1, 4, 4)
    with pytest.raises(IncompatibleDeltas, match=r"attention_mask of 4 axes.*\(rows, tokens\)"):
        model(input_ids=torch.ones(1, 4, dtype=torch.int64), attention_mask=mask)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_detached_is_the_base(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family), kit.make_inputs(family)
    before, plain = kit.snapshot(model), kit.out(model, batch)
    dk.attach(model, dk.PromptTuning(length=LENGTH))
    assert not torch.equal(kit.out(model, batch), plain)
    dk.detach(model)
    assert torch.equal(kit.out(model, batch), plain)
    kit.assert_same(before, kit.snapshot(model))


@pytest.mark.parametrize("length", [0, -1, 2.5, True])
def test_settings(length: Any) -> None:
    with pytest.raises(InvalidConfig, match=r"PromptTuning\(length="):
        dk.PromptTuning(length=length)


# ------------------------------------------------------------------------------ caches that go on

GREEDY: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": 4,
    "min_new_tokens": 4,
    "eos_token_id": None,
    "pad_token_id": 0,
    "return_dict_in_generate": True,
}


def talker(kit: SimpleNamespace, family: str) -> Any:
    model = kit.make_model(family, "causal")
    dk.attach(model, dk.PromptTuning(length=3))
    kit.randomise_deltas(model)
    return model.eval()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mistral"])
def test_a_conversation_goes_on_with_its_cache(kit: SimpleNamespace, family: str) -> None:
    model, question = talker(kit, family), torch.randint(5, 60, (1, 6))
    turn = model.generate(question, **GREEDY)
    for _ in range(2):
        cache = copy.deepcopy(turn.past_key_values)
        more = torch.cat([turn.sequences, torch.randint(5, 60, (1, 5))], dim=1)
        afresh = model.generate(more, **GREEDY)
        for each in (turn.past_key_values, cache):
            turn = model.generate(more, past_key_values=each, **GREEDY)
            assert torch.equal(turn.sequences, afresh.sequences)


def test_a_cache_counts_tokens(kit: SimpleNamespace) -> None:
    model, ids = talker(kit, "llama"), torch.randint(5, 60, (2, 9))
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        parts = []
        for start in (0, 4, 5):
            assert cache.get_seq_length() == start
            end = {0: 4, 4: 5, 5: 9}[start]
            places = torch.arange(start, end)[None].expand(2, -1)
            parts.append(model(ids[:, start:end], past_key_values=cache, position_ids=places))
        whole = model(ids)
    torch.testing.assert_close(torch.cat([p.logits for p in parts], 1), whole.logits)
    assert whole.past_key_values.get_seq_length() == 9


def test_a_cache_of_another_delta_is_refused(kit: SimpleNamespace) -> None:
    model, ids = talker(kit, "llama"), torch.randint(5, 60, (1, 4))
    with dk.disabled(model), torch.no_grad():
        cache = model(ids).past_key_values
    with pytest.raises(IncompatibleDeltas, match="filled with 0 positions of a delta.*has 3"):
        model(ids, past_key_values=cache)


@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "gpt2"])
def test_a_static_cache_is_refused_with_advice_that_works(
    kit: SimpleNamespace, family: str
) -> None:
    model, ids = talker(kit, family), torch.randint(5, 60, (1, 6))
    expected = model.generate(ids, **GREEDY).sequences
    model.generation_config.cache_implementation = "static"
    with pytest.raises(IncompatibleDeltas, match="cache_implementation='dynamic'"):
        model.generate(ids, **GREEDY)
    found = model.generate(ids, cache_implementation="dynamic", **GREEDY).sequences
    assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_static_cache_is_filled_as_long_as_there_is_room(
    kit: SimpleNamespace, family: str
) -> None:
    model, ids = talker(kit, family), torch.randint(5, 60, (1, 6))
    caches = DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=10)
    for part in (ids[:, :4], ids[:, 4:]):
        first, second = (model(part, past_key_values=cache) for cache in caches)
        torch.testing.assert_close(second.logits, first.logits)
    with pytest.raises(IncompatibleDeltas, match="static cache has no room for the 3 positions"):
        model(ids, past_key_values=caches[1])


def test_the_plain_model_does_not_go_on_with_a_deltas_cache(kit: SimpleNamespace) -> None:
    """It would number the tokens as if the delta's positions were not there."""
    model, ids = talker(kit, "llama"), torch.randint(5, 60, (1, 4))
    turn = model.generate(ids, **GREEDY)
    kept = copy.deepcopy(turn.past_key_values)
    for cache in (turn.past_key_values, kept):
        with dk.using(model, None), pytest.raises(IncompatibleDeltas, match="3 positions.*Begin"):
            model.generate(turn.sequences, past_key_values=cache, **GREEDY)
        expected = model.generate(turn.sequences, **GREEDY).sequences
        again = model.generate(turn.sequences, past_key_values=copy.deepcopy(cache), **GREEDY)
        assert torch.equal(again.sequences, expected)
