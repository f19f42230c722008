"""What a model cannot read is told before anything is trained."""

from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset

import deltakit as dk
from deltakit.compare.plan.limits import (
    added_positions,
    check_room,
    check_tokens,
    cut_length,
    longest_input,
    readable_shapes,
)
from deltakit.errors import InvalidConfig

LONG = SimpleNamespace(model_max_length=10**30)


@pytest.mark.parametrize(
    ("family", "limit"),
    [
        ("bert", 40),
        ("roberta", 39),  # one place is the padding's
        ("gpt2", 40),
        ("bart", 40),  # with two places in front
        ("opt", 40),
        ("llama", 10**30),  # rotations have no end
        ("t5", 10**30),
        ("deberta-v2", 10**30),
    ],
)
def test_the_longest_input_is_that_of_the_table_of_positions(
    kit: SimpleNamespace, family: str, limit: int
) -> None:
    skeleton = kit.make_model(family)
    assert longest_input(skeleton, LONG) in (limit, 40 if family == "deberta-v2" else limit)
    assert longest_input(skeleton, SimpleNamespace(model_max_length=7)) == 7


def test_texts_are_cut_to_it_with_a_note() -> None:
    assert cut_length(30, 40, "m") == (30, ())
    length, (note,) = cut_length(64, 40, "m")
    assert length == 40 and "cut to 40 tokens" in note and "--max-length 64" in note
    with pytest.raises(InvalidConfig, match="--latency 8x64.* 40 tokens at most"):
        readable_shapes(("1x40", "8x64"), 40, "m", usual=False)
    kept, (note,) = readable_shapes(("1x40", "8x64"), 40, "m", usual=True)
    assert kept == ("1x40",)
    assert note == "latency is not timed at 8x64: m reads 40 tokens at most."


def around(special: int) -> Any:
    """A tokenizer with so many tokens around a text, and one more around a pair."""
    return SimpleNamespace(num_special_tokens_to_add=lambda pair: special + pair)


@pytest.mark.parametrize(
    ("special", "pair", "kind", "least"),
    [(2, False, 1, 3), (2, True, 1, 4), (0, False, 1, 1), (0, False, 2, 2), (1, False, 2, 2),
     (2, False, 10, 10)],
)  # fmt: skip
def test_a_text_has_room_for_a_token_of_its_own(
    special: int, pair: bool, kind: int, least: int
) -> None:
    task: Any = SimpleNamespace(
        name="t", has_pairs=pair, kind=SimpleNamespace(least_tokens=kind)
    )  # fmt: skip
    check_room([task], around(special), least, 40, 0)
    with pytest.raises(InvalidConfig, match=f"Give --max-length {least} or more\\.$"):
        check_room([task], around(special), least - 1, 40, 0)
    with pytest.raises(InvalidConfig, match="a prompt takes 9 positions. Shorten the prompt"):
        check_room([task], around(special), 40, least - 1, 9)
    with pytest.raises(InvalidConfig, match="Choose a model that reads longer texts"):
        check_room([task], around(special), 40, least - 1, 0)


def test_a_tokenizer_leaves_a_text_whole_that_has_no_room() -> None:
    """Why the room is checked: the text would be longer than asked."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1, "<": 2, ">": 3}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="< $A >", special_tokens=[("<", 2), (">", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    sizes = {
        n: len(tokenizer("a a a a", truncation=True, max_length=n)["input_ids"]) for n in (1, 3)
    }
    assert sizes == {1: 6, 3: 3}


class Words:
    """A tokenizer with one word, and nothing for others."""

    model_max_length = 10**30
    pad_token_id: int | None = 0
    bos_token_id = eos_token_id = cls_token_id = sep_token_id = unk_token_id = None

    def get_vocab(self) -> dict[str, int]:
        return {"[PAD]": 0, "known": 1}

    def __call__(self, text: Any) -> dict[str, Any]:
        one = isinstance(text, str)
        ids = [[1] * each.split().count("known") for each in ([text] if one else text)]
        return {"input_ids": ids[0] if one else ids}


def task(*texts: str) -> Any:
    kind = SimpleNamespace(check_tokenizer=lambda model, tokenizer: None)
    splits = dict.fromkeys(("train", "validation"), Dataset.from_dict({"text": ["known"]}))
    test = Dataset.from_dict({"text": list(texts)})
    return SimpleNamespace(name="mine", kind=kind, test=test, **splits)


def test_a_text_without_a_token_is_told(kit: SimpleNamespace) -> None:
    skeleton = kit.make_model("gpt2")
    check_tokens("m", skeleton, Words(), [task("known known")])  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="2 of 3 texts of mine's test split.*first is 'other'"):
        check_tokens("m", skeleton, Words(), [task("known", "other", " ")])  # type: ignore[arg-type]


def word_level(vocabulary: dict[str, int], unknown: str | None = None) -> Any:
    """A tokenizer of whole words; without a token for others it raises at the first of them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown or "missing"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {} if unknown is None else {"unk_token": unknown}
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", **named)


def rows_of(**columns: list[Any]) -> Any:
    kind = SimpleNamespace(check_tokenizer=lambda model, tokenizer: None)
    known = Dataset.from_dict({name: cells[:1] for name, cells in columns.items()})
    test = Dataset.from_dict(columns)
    return SimpleNamespace(name="mine", kind=kind, train=known, validation=known, test=test)


@pytest.mark.parametrize("column", ["text", "text_pair", "label", "source"])
def test_words_without_a_token_are_told_in_every_column(kit: SimpleNamespace, column: str) -> None:
    """Pairs and answers are read by the model too; a tokenizer's own error has no row."""
    rows = {"text": ["known", "known"], column: ["known", "other"]}
    words = word_level({"[PAD]": 0, "known": 1})
    check_tokens("m", kit.make_model("gpt2"), words, [rows_of(text=["known"])])
    with pytest.raises(
        InvalidConfig, match=f"test split, row 2: .* the {column} 'other'"
    ) as caught:
        check_tokens("m", kit.make_model("gpt2"), words, [rows_of(**rows)])
    assert "\n" not in str(caught.value) and "a token for unknown words" in str(caught.value)


@pytest.mark.parametrize("column", ["text_pair", "label", "tokens"])
def test_a_token_that_the_model_lacks_is_told_in_every_column(
    kit: SimpleNamespace, column: str
) -> None:
    late = [["known"], ["known", "late"]] if column == "tokens" else ["known", "late"]
    rows = {"text": ["known", "known"], column: late}
    words = word_level({"[PAD]": 0, "known": 1, "late": 64, "[UNK]": 2}, "[UNK]")
    with pytest.raises(InvalidConfig, match=f"row 2: the {column} has the token 'late' .64."):
        check_tokens("m", kit.make_model("gpt2"), words, [rows_of(**rows)])


def test_an_empty_second_text_is_none_without_a_token(kit: SimpleNamespace) -> None:
    words = word_level({"[PAD]": 0, "known": 1, "[UNK]": 2}, "[UNK]")
    rows = rows_of(text=["known"], text_pair=[""], label=[1])
    check_tokens("m", kit.make_model("gpt2"), words, [rows])


@pytest.mark.parametrize(
    ("name", "number", "message"),
    [
        ("pad", None, "no token for padding.*Set tokenizer.pad_token"),
        ("pad", 64, "the pad token 64.*embeddings for 0 to 63.*resize_token_embeddings"),
        ("eos", 99, "the eos token 99"),
    ],
)
def test_special_tokens_that_the_model_lacks(
    kit: SimpleNamespace, name: str, number: int | None, message: str
) -> None:
    words = Words()
    setattr(words, f"{name}_token_id", number)
    with pytest.raises(InvalidConfig, match=message):
        check_tokens("m", kit.make_model("gpt2"), words, [])  # type: ignore[arg-type]


def test_a_text_with_a_token_that_the_model_lacks(kit: SimpleNamespace) -> None:
    class Wide(Words):
        def get_vocab(self) -> dict[str, int]:
            return {"[PAD]": 0, "known": 1, "late": 64}

        def __call__(self, text: Any) -> dict[str, Any]:
            texts = [text] if isinstance(text, str) else text
            return {"input_ids": [[64 if "late" in each else 1] for each in texts]}

        def convert_ids_to_tokens(self, number: int) -> str:
            return {64: "late"}[number]

    check_tokens("m", kit.make_model("gpt2"), Wide(), [task("known")])  # type: ignore[arg-type]
    with pytest.raises(InvalidConfig, match="test split, row 2: .*'late' .64.*0 to 63.*resize"):
        check_tokens("m", kit.make_model("gpt2"), Wide(), [task("a", "late")])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("method", "positions"),
    [
        ("lora", 0),
        ("prompt[length=5]", 5),
        ("prompt[length=5]+lora", 5),
        ("prefix[length=4]", 0),  # it shifts no position
        ("prefix[length=4,positions=shifted]", 4),
    ],
)
def test_positions_of_a_prompt_count(kit: SimpleNamespace, method: str, positions: int) -> None:
    model = kit.make_model("gpt2")
    assert added_positions(dk.parse_method(method), dk.resolve(model)) == positions
    assert longest_input(model, LONG, positions) == 40 - positions
    rotated = kit.make_model("llama")
    assert longest_input(rotated, LONG, positions) == 10**30


def test_virtual_tokens_of_another_library_are_counted(kit: SimpleNamespace) -> None:
    pytest.importorskip("peft")
    handles = dk.resolve(kit.make_model("bert"))
    for spec, places in (("peft:prompt_tuning[num_virtual_tokens=7]", 7), ("peft:lora[r=2]", 0)):
        assert added_positions(dk.parse_method(spec), handles) == places
