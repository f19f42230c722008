"""What was forgotten: equal to what transformers computes, one passage at a time."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.measure import forgetting as measure
from deltakit.compare.measure.forgetting import Forgotten, batches_of, forgetting, mean_of, way_for
from deltakit.compare.measure.readings import (
    Drift,
    MaskedWithHead,
    NextWithHead,
    OwnHead,
    Row,
    SecondHalf,
    Way,
    masked,
)
from deltakit.compare.tasks.general import GeneralText
from deltakit.core.provider import AdaptedModel
from deltakit.models.heads import (
    ChoiceHead,
    Head,
    LanguageHead,
    MaskedHead,
    Seq2SeqHead,
    SequenceHead,
    SpanHead,
    TokenHead,
)
from deltakit.models.source import BaseChoice, ModelSource, find_model
from deltakit.testing.probes import randomise_all, randomise_deltas

FP32 = BaseChoice(name="fp32")
CLASSES = SequenceHead(outputs=2)
PASSAGES = (
    "the film and the plot of the story",
    "bread soup cake",
    "goal match team phone laptop code bank market price the end of the scene and the actor",
    "great",
    "a moving story and a strong end",
)
TEXT = GeneralText(name="words", passages=PASSAGES, max_length=16)
DEVICE = torch.device("cpu")


def tokenizer_of(source: ModelSource) -> Any:
    """With a mask where the tiny vocabulary has none: the sign of an unknown word."""
    tokenizer = source.tokenizer()
    tokenizer.mask_token = "[UNK]"
    return tokenizer


def adapted(
    source: ModelSource,
    head: Head,
    method: str = "lora",
    change: Callable[[Any], None] | None = None,
) -> AdaptedModel:
    """A model with a method on it, whose values `change` has changed."""
    torch.manual_seed(0)
    model = source.load(FP32, head, source.tokenizer().pad_token_id).model
    model.config.use_cache = False
    made = adapted_model(model, dk.parse_method(method))
    made.attach()
    if change is not None:
        change(made.model)
    return made


def measured(made: AdaptedModel, way: Way, tokenizer: Any, text: GeneralText = TEXT) -> Forgotten:
    found = forgetting(made, way, batches_of(way, text, tokenizer, DEVICE))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def masked_bert(tmp_path_factory: pytest.TempPathFactory, bert: Path, make: Any) -> Path:
    """A checkpoint folder of a tiny BERT that fills in masked tokens."""
    folder = tmp_path_factory.mktemp("masked") / "tiny-masked"
    make.model(folder, "bert", "AutoModelForMaskedLM", pad_token_id=0)
    make.tokenizer(folder, inputs=["input_ids", "token_type_ids", "attention_mask"], pad=True)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory, make: Any) -> Path:
    """A checkpoint folder of a tiny T5."""
    folder = tmp_path_factory.mktemp("t5") / "tiny-t5"
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 2, "num_heads": 4}
    ends = {"pad_token_id": 0, "eos_token_id": 3, "decoder_start_token_id": 0}
    make.model(folder, "t5", "AutoModelForSeq2SeqLM", **sizes, **ends)
    make.tokenizer(folder, inputs=["input_ids", "attention_mask"], pad=True)
    return folder


# ------------------------------------------------------------------------------------- by hand


def loss_by_hand(model: Any, tokenizer: Any) -> tuple[float, int]:
    """The sum of transformers' own losses, a passage at a time, and the number of tokens."""
    total, tokens = 0.0, 0
    for passage in PASSAGES:
        ids = tokenizer(passage, truncation=True, max_length=16, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            total += float(model(input_ids=ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return total, tokens


def test_a_decoder_is_judged_by_its_loss_of_each_next_token(decoder: Path) -> None:
    source = find_model(str(decoder))
    tokenizer = source.tokenizer()
    made = adapted(source, LanguageHead(), "lora", randomise_deltas)
    found = measured(made, OwnHead(head=LanguageHead()), tokenizer)
    own, tokens = loss_by_hand(made.model, tokenizer)
    with made.disabled() as plain:
        base, _ = loss_by_hand(plain, tokenizer)
    assert found.kind == "token_loss"
    assert found.base == pytest.approx(base / tokens, abs=1e-6)
    assert found.value == pytest.approx((own - base) / tokens, abs=1e-6)
    assert abs(found.value) > 1e-3


def carried(made: AdaptedModel, source: ModelSource, head: Head, folder: Path) -> Any:
    """The checkpoint's language model with the delta of another model of it."""
    made.save(folder)
    model = source.load(FP32, head, source.tokenizer().pad_token_id).model
    dk.load(model, folder, "trained", head=False)
    return model.eval()


def test_a_decoder_that_classifies_has_the_head_of_its_checkpoint(
    decoder: Path, tmp_path: Path
) -> None:
    source = find_model(str(decoder))
    tokenizer = source.tokenizer()
    made = adapted(source, CLASSES, "lora", randomise_deltas)
    way = way_for(CLASSES, source, FP32, tokenizer)
    assert type(way) is NextWithHead
    found = measured(made, way, tokenizer)
    model = carried(made, source, LanguageHead(), tmp_path)
    own, tokens = loss_by_hand(model, tokenizer)
    with dk.disabled(model):
        base, _ = loss_by_hand(model, tokenizer)
    assert found.kind == "token_loss"
    assert found.base == pytest.approx(base / tokens, abs=1e-6)
    assert found.value == pytest.approx((own - base) / tokens, abs=1e-6)
    assert abs(found.value) > 1e-3


def test_an_encoder_fills_in_masked_tokens(masked_bert: Path, tmp_path: Path) -> None:
    source = find_model(str(masked_bert))
    tokenizer = tokenizer_of(source)
    made = adapted(source, CLASSES, "lora", randomise_deltas)
    way = way_for(CLASSES, source, FP32, tokenizer)
    assert type(way) is MaskedWithHead
    found = measured(made, way, tokenizer)
    model = carried(made, source, MaskedHead(), tmp_path)

    def by_hand() -> tuple[float, int]:
        total, tokens = 0.0, 0
        for place, passage in enumerate(PASSAGES):
            ids = tokenizer(passage, truncation=True, max_length=16)["input_ids"]
            at = sorted(range(1, len(ids) - 1)[place % 7 :: 7]) or [1]
            given = torch.tensor([[1 if i in at else each for i, each in enumerate(ids)]])
            labels = torch.tensor([[each if i in at else -100 for i, each in enumerate(ids)]])
            with torch.no_grad():
                total += float(model(input_ids=given, labels=labels).loss) * len(at)
            tokens += len(at)
        return total, tokens

    own, tokens = by_hand()
    with dk.disabled(model):
        base, _ = by_hand()
    assert found.kind == "masked_loss"
    assert found.base == pytest.approx(base / tokens, abs=1e-6)
    assert found.value == pytest.approx((own - base) / tokens, abs=1e-6)
    assert abs(found.value) > 1e-3


def test_an_encoder_without_such_a_head_is_judged_by_its_states(bert: Path) -> None:
    source = find_model(str(bert))
    tokenizer = tokenizer_of(source)
    made = adapted(source, CLASSES, "lora", randomise_deltas)
    way = way_for(CLASSES, source, FP32, tokenizer)
    assert type(way) is Drift
    found = measured(made, way, tokenizer)
    cosines: list[float] = []
    for passage in PASSAGES:
        batch = tokenizer(passage, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            own = made.model.base_model(**batch).last_hidden_state[0]
            with made.disabled() as plain:
                base = plain.base_model(**batch).last_hidden_state[0]
        cosines += torch.cosine_similarity(own.double(), base.double(), dim=-1).tolist()
    assert (found.kind, found.base) == ("drift", None)
    assert found.value == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)
    assert found.value > 1e-3


def test_an_encoder_decoder_writes_the_second_half(t5: Path) -> None:
    source = find_model(str(t5))
    tokenizer = source.tokenizer()
    made = adapted(source, Seq2SeqHead(), "lora", randomise_deltas)
    way = way_for(Seq2SeqHead(), source, FP32, tokenizer)
    assert type(way) is SecondHalf
    found = measured(made, way, tokenizer)

    def by_hand(model: Any) -> tuple[float, int]:
        total, tokens = 0.0, 0
        for passage in PASSAGES:
            words = passage.split()
            first, second = words[: len(words) // 2], words[len(words) // 2 :]
            read = tokenizer(" ".join(first), return_tensors="pt")["input_ids"]
            labels = tokenizer(text_target=" ".join(second), return_tensors="pt")["input_ids"]
            with torch.no_grad():
                total += float(model(input_ids=read, labels=labels).loss) * labels.shape[1]
            tokens += labels.shape[1]
        return total, tokens

    own, tokens = by_hand(made.model)
    with made.disabled() as plain:
        base, _ = by_hand(plain)
    assert found.kind == "token_loss"
    assert found.base == pytest.approx(base / tokens, abs=1e-6)
    assert found.value == pytest.approx((own - base) / tokens, abs=1e-6)


def test_full_fine_tuning_is_measured_against_the_base_as_it_was(decoder: Path) -> None:
    source = find_model(str(decoder))
    tokenizer = source.tokenizer()
    made = adapted(source, LanguageHead(), "full", randomise_all)
    found = measured(made, OwnHead(head=LanguageHead()), tokenizer)
    fresh = source.load(FP32, LanguageHead(), tokenizer.pad_token_id).model.eval()
    base, tokens = loss_by_hand(fresh, tokenizer)
    own, _ = loss_by_hand(made.model, tokenizer)
    assert found.base == pytest.approx(base / tokens, abs=1e-6)
    assert found.value == pytest.approx((own - base) / tokens, abs=1e-6)


def test_a_head_that_shares_the_embeddings_has_the_trained_ones(tmp_path: Path, make: Any) -> None:
    folder = tmp_path / "tied"
    names = {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": None}
    make.model(folder, "llama", "AutoModelForCausalLM", tie_word_embeddings=True, **names)
    make.tokenizer(folder, inputs=["input_ids", "attention_mask"], pad=False)
    source = find_model(str(folder))
    tokenizer = source.tokenizer()
    made = adapted(source, CLASSES, "full", randomise_all)
    found = measured(made, way_for(CLASSES, source, FP32, tokenizer), tokenizer)
    model = source.load(FP32, LanguageHead(), tokenizer.pad_token_id).model.eval()
    base, tokens = loss_by_hand(model, tokenizer)
    trained = made.model.base_model.state_dict()
    model.base_model.load_state_dict(
        {name: trained[name] for name in model.base_model.state_dict()}
    )
    own, _ = loss_by_hand(model, tokenizer)
    assert found.base == pytest.approx(base / tokens, abs=1e-6)
    assert found.value == pytest.approx((own - base) / tokens, abs=1e-6)


# ------------------------------------------------------------------------- what changes nothing

CASES: Mapping[str, tuple[str, Head]] = {
    "own head": ("decoder", LanguageHead()),
    "put back": ("decoder", CLASSES),
    "masked": ("masked_bert", CLASSES),
    "drift": ("bert", CLASSES),
    "second half": ("t5", Seq2SeqHead()),
    "tags": ("bert", TokenHead(outputs=3)),
    "spans": ("masked_bert", SpanHead()),
    "choices": ("masked_bert", ChoiceHead()),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> SimpleNamespace:
    name, head = CASES[request.param]
    source = find_model(str(request.getfixturevalue(name)))
    tokenizer = tokenizer_of(source)
    way = way_for(head, source, FP32, tokenizer)
    return SimpleNamespace(source=source, head=head, tokenizer=tokenizer, way=way)


def test_a_delta_without_an_effect_forgets_nothing(case: SimpleNamespace) -> None:
    found = measured(adapted(case.source, case.head), case.way, case.tokenizer)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_padding_and_the_size_of_batches_change_nothing(
    case: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = adapted(case.source, case.head, "lora", randomise_deltas)
    found = measured(made, case.way, case.tokenizer)
    monkeypatch.setattr(measure, "ROWS", 1)
    assert measured(made, case.way, case.tokenizer).value == pytest.approx(found.value, abs=1e-6)
    assert found == measured(made, case.way, case.tokenizer) or found.value != 0.0


def test_the_model_is_left_as_it_was(case: SimpleNamespace) -> None:
    made = adapted(case.source, case.head, "lora", randomise_deltas)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    measured(made, case.way, case.tokenizer)
    after: Mapping[str, Tensor] = made.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    "method",
    ["prompt", "prefix", "adapter", "peft:lora", "peft:prompt_tuning[num_virtual_tokens=3]"],
)
@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_other_methods_are_measured_on_the_text_alone(
    method: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = find_model(str(request.getfixturevalue(name)))
    tokenizer = source.tokenizer()
    way = way_for(CLASSES, source, FP32, tokenizer)
    found = measured(adapted(source, CLASSES, method), way, tokenizer)
    assert found.kind == ("drift" if name == "bert" else "token_loss")
    assert (found.value == 0.0) == (method == "peft:lora")
    monkeypatch.setattr(measure, "ROWS", 1)
    alone = measured(adapted(source, CLASSES, method), way, tokenizer)
    assert alone.value == pytest.approx(found.value, abs=1e-5)


# -------------------------------------------------------------------------------- small parts


def test_each_seventh_token_of_the_text_is_masked() -> None:
    special = [1, *([0] * 15), 1]
    assert masked(special, 0) == {1, 8, 15} and masked(special, 1) == {2, 9}
    assert masked(special, 7) == masked(special, 0)
    assert masked([1, 0, 1], 5) == {1} and masked([1, 1], 0) == frozenset()


def test_the_mean_is_over_tokens_and_the_interval_over_passages() -> None:
    found = mean_of("token_loss", [Row(1.0, 4.0, 2), Row(2.0, 9.0, 4), Row(3.0, 2.0, 4)])
    assert found is not None
    assert (found.value, found.base) == (0.6, 1.5)
    # By hand: residuals -0.2, -0.4, 0.6; s² of their sum is 3/2 · 0.56; t of 2 degrees is 4.3027.
    half = 4.302652729749 * (1.5 * 0.56) ** 0.5 / 10
    assert found.low == pytest.approx(0.6 - half) and found.high == pytest.approx(0.6 + half)
    single = mean_of("drift", [Row(1.0, float("nan"), 2)])
    assert single == Forgotten(kind="drift", value=0.5, low=None, high=None, base=None)
    assert mean_of("drift", []) is None


def test_what_is_too_long_is_cut(decoder: Path) -> None:
    tokenizer = find_model(str(decoder)).tokenizer()
    text = dataclasses.replace(TEXT, max_length=5)
    (batch,) = batches_of(OwnHead(head=LanguageHead()), text, tokenizer, DEVICE)
    assert batch["input_ids"].shape == (5, 5)
