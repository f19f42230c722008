"""Tags of words: what is read, what is trained on, what is predicted, what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.api import run_plan
from deltakit.compare.plan.request import Budget
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.run.predict import predict, predictions_of
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.train import train
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import ColumnNames, load_task, subsample
from deltakit.compare.tasks.kinds import Tokens, fitting_metrics
from deltakit.compare.tasks.sources.hub import hub_task
from deltakit.errors import InvalidConfig
from deltakit.models.source import BaseChoice, find_model

TAGS = ("O", "B-LOC", "I-LOC")
KIND = Tokens(tags=TAGS)
WORDS = [["go", "to", "newyork", "city"], ["abcab"], ["to", "abc", "b"]]
ROWS = {"tokens": WORDS, "label": [[0, 0, 1, 2], [1], [0, 1, 2]]}


@pytest.fixture
def pieces() -> PreTrainedTokenizerFast:
    """A tokenizer of single letters, with a token before and after a text."""
    letters = {
        token: at
        for at, token in enumerate(("[PAD]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"))
    }
    letters |= {
        f"##{letter}": len(letters) + at for at, letter in enumerate("abcdefghijklmnopqrstuvwxyz")
    }
    tokenizer = Tokenizer(models.WordPiece(letters, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")


def encoded(tokenizer: Any, most: int = 64) -> Dataset:
    return KIND.encode(Dataset.from_dict(ROWS), tokenizer, most)


def test_the_first_sub_word_of_a_word_is_labelled(pieces: Any) -> None:
    row = encoded(pieces)[0]
    assert len(row["input_ids"]) == 2 + len("gotonewyorkcity")
    assert row["first"] == [1, 3, 5, 12]
    labelled = {at: label for at, label in enumerate(row["labels"]) if label != -100}
    assert labelled == {1: 0, 3: 0, 5: 1, 12: 2}


def test_the_tokens_are_those_of_words_given_one_by_one(bert: Path, pieces: Any) -> None:
    for tokenizer, words in (
        (find_model(str(bert)).tokenizer(), ["the", "film", "end"]),
        (pieces, WORDS[0]),
    ):
        data = Dataset.from_dict({"tokens": [words], "label": [[0] * len(words)]})
        (row,) = KIND.encode(data, tokenizer, 64)
        alone = tokenizer(words, is_split_into_words=True)
        assert row["input_ids"] == alone["input_ids"]
        ids = alone.word_ids()
        assert row["first"] == [ids.index(at) for at in range(len(words))]


class _Tagger(torch.nn.Module):
    """Says the tag that is the token's number modulo three, behind `extra` positions."""

    device = torch.device("cpu")

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        tags = torch.nn.functional.one_hot(input_ids % 3, 3).float()
        before = torch.zeros(len(tags), self.extra, 3)
        return SimpleNamespace(logits=torch.cat([before, tags], dim=1))


@pytest.mark.parametrize("extra", [0, 5])
def test_words_have_the_prediction_of_their_first_sub_word(pieces: Any, extra: int) -> None:
    data = encoded(pieces)
    found = predict(_Tagger(extra), data, KIND, pieces)  # type: ignore[arg-type]
    expected = [tuple(row["input_ids"][at] % 3 for at in row["first"]) for row in data]
    assert [*found.predicted] == expected and found.classes == TAGS
    assert found.labels == ((0, 0, 1, 2), (1,), (0, 1, 2))


def test_what_is_cut_off_is_wrong_and_said(pieces: Any) -> None:
    data = encoded(pieces, 8)  # [CLS] g ##o t ##o n ##e [SEP]
    found = predict(_Tagger(0), data, KIND, pieces)  # type: ignore[arg-type]
    assert found.predicted[0][-1] == -1 and -1 not in found.predicted[0][:-1]  # type: ignore
    assert all(len(a) == len(b) for a, b in zip(found.labels, found.predicted, strict=True))  # type: ignore
    (note,) = KIND.notes(data)
    assert note.startswith("1 of 8 words, in 1 sentences, are cut off by --max-length")
    assert KIND.notes(encoded(pieces)) == ()


def test_the_constant_is_the_most_frequent_tag() -> None:
    truth = {"truth": [[0, 0, 1, 2], [1], [0, 0, 0]]}
    data = Dataset.from_dict(truth)
    outputs = KIND.majority_prediction(data, data, None)  # type: ignore[arg-type]
    assert outputs.values == [(0,) * 4, (0,), (0,) * 3]
    found = predictions_of(KIND, data, outputs)
    assert METRICS.get("span_f1").value(found) == 0
    assert METRICS.get("word_accuracy").value(found) == pytest.approx(5 / 8)


# ---------------------------------------------------------------------------- what data looks like

SENTENCES = [[f"w{n}", "in", "Rome"][: 2 + n % 2] for n in range(30)]
NAMES = [["O", "O", "B-LOC"][: len(words)] for words in SENTENCES]


def _rows(words: Any = SENTENCES, tags: Any = NAMES) -> list[dict[str, Any]]:
    return [{"tokens": w, "tags": t} for w, t in zip(words, tags, strict=True)]


def _csv(path: Path, show: Callable[[Any], str]) -> Path:
    cells = [f'"{show(w)}","{show(t)}"' for w, t in zip(SENTENCES, NAMES, strict=True)]
    path.write_text("\n".join(["tokens,tags", *cells]))
    return path


def test_lists_files_and_texts_are_one_task(make: SimpleNamespace, tmp_path: Path) -> None:
    lists = load_task(str(make.lines(tmp_path / "data.jsonl", _rows())))
    lines = [
        "\n".join(map("\t".join, zip(w, t, strict=True)))
        for w, t in zip(SENTENCES, NAMES, strict=True)
    ]
    for ending in ("conll", "txt", "tsv"):
        (tmp_path / f"data.{ending}").write_text("\n\n".join(lines))
    python = _csv(tmp_path / "python.csv", str)
    quoted = _csv(tmp_path / "json.csv", lambda each: json.dumps(each).replace('"', '""'))
    found = [load_task(str(tmp_path / f"data.{each}")) for each in ("conll", "txt", "tsv")]
    found += [load_task(str(each)) for each in (python, quoted)]
    spaced = _csv(tmp_path / "spaces.csv", " ".join)
    found.append(load_task(str(spaced), ColumnNames(separator=" "), kind="tokens"))
    assert lists.kind == Tokens(tags=("B-LOC", "O")) and lists.metric == "span_f1"
    assert {each.fingerprint for each in found} == {lists.fingerprint}
    assert fitting_metrics(lists.kind)[:2] == ("span_f1", "word_accuracy")


def test_columns_of_other_names(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = [{"words": row["tokens"], "pos": row["tags"]} for row in _rows()]
    file = str(make.lines(tmp_path / "data.jsonl", rows))
    data = load_task(file, ColumnNames(text="words", label="pos"), kind="tokens")
    assert set(data.train.column_names) == {"tokens", "label"}
    with pytest.raises(InvalidConfig, match=r"no column 'tokens'.*--text-column"):
        load_task(file, kind="tokens")
    with pytest.raises(InvalidConfig, match=r"no column 'tags'.*--label-column"):
        load_task(file, ColumnNames(text="words"), kind="tokens")


def test_tags_that_are_numbers_are_tags_and_name_no_spans(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    tags = [[10 * (tag != "O") for tag in row] for row in NAMES]
    data = load_task(str(make.lines(tmp_path / "data.jsonl", _rows(tags=tags))))
    assert data.labels == ("0", "10") and data.metric == "word_accuracy"
    assert any("('0', '10') name no spans" in note for note in data.notes)


def test_the_hubs_names_are_those_of_the_tags() -> None:
    names = List(ClassLabel(names=["O", "B-PER", "B-LOC"]))
    features = Features({"tokens": List(Value("string")), "ner_tags": names})
    columns = {"tokens": SENTENCES, "ner_tags": NAMES}
    train = Dataset.from_dict(columns, features=features)
    data = hub_task("a/b", {"train": train, "test": train}, ColumnNames(label="ner_tags"), "tokens")
    assert data.labels == ("O", "B-PER", "B-LOC")
    assert data.test[0] == {"label": [0, 0], "tokens": SENTENCES[0]}


def test_conflicts_and_leaks_are_told(make: SimpleNamespace, tmp_path: Path) -> None:
    other = {"tokens": SENTENCES[1], "tags": ["O", "O", "O"]}
    make.lines(tmp_path / "train.jsonl", [*_rows(), other])
    make.lines(tmp_path / "validation.jsonl", [{"tokens": ["new", "one"], "tags": ["O", "O"]}])
    make.lines(tmp_path / "test.jsonl", [{"tokens": SENTENCES[3], "tags": ["O", "O", "O"]}])
    notes = load_task(str(tmp_path)).notes
    assert any(n.startswith("train: 1 texts occur with different labels") for n in notes)
    assert any(
        "test: 1 of 1 examples have a text that is in train too, 1 of them" in n for n in notes
    )


@pytest.mark.parametrize(
    ("words", "tags", "message"),
    [
        (["a", "b"], ["O"], r"row 31: .* 'tags' has 1 tags for 2 words\. Give each word one tag"),
        (["a"], None, r"row 31: .* has no tags\. Give every sentence a list"),
        (["a"], "O", r"row 31: .* holds 'O', no list of tags"),
        (["a"], [None], r"row 31: .* holds \[None\], of which not all are tags"),
        (["a"], [""], r"row 31: .* of which not all are tags"),
        ("a b", ["O", "O"], r"row 31: the column 'tokens' holds 'a b', not a list of words"),
        ([], [], r"row 31: the column 'tokens' holds \[\], not a list of words"),
    ],
)
def test_a_row_that_does_not_align_is_refused(
    words: Any, tags: Any, message: str, make: SimpleNamespace, tmp_path: Path
) -> None:
    rows = [*_rows(), {"tokens": words, "tags": tags}]
    with pytest.raises(InvalidConfig, match=message) as caught:
        load_task(str(make.lines(tmp_path / "data.jsonl", rows)), kind="tokens")
    assert "\n" not in str(caught.value)


def test_a_tag_that_train_does_not_have_is_refused(make: SimpleNamespace, tmp_path: Path) -> None:
    make.lines(tmp_path / "train.jsonl", _rows())
    make.lines(tmp_path / "test.jsonl", [{"tokens": ["a"], "tags": ["B-PER"]}])
    with pytest.raises(InvalidConfig, match=r"row 1: tag 'B-PER' does not occur in train, whose"):
        load_task(str(tmp_path))
    make.lines(tmp_path / "train.jsonl", _rows(tags=[["O"] * len(words) for words in SENTENCES]))
    with pytest.raises(InvalidConfig, match=r"has only one tag, 'O'"):
        load_task(str(tmp_path))


def test_a_tokenizer_that_is_not_fast_is_refused_before_training(
    asked: Any, make: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = str(make.lines(tmp_path / "data.jsonl", _rows()))
    assert build_plan(asked("lora", task=file, source_tasks=())).task.kind.name == "tokens"
    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)
    with pytest.raises(InvalidConfig, match=r"is not a fast one.*'tokens' needs.*--model"):
        build_plan(asked("lora", task=file, source_tasks=()))


# --------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("spec", ["adapter", "lora", "prefix[length=3]", "prompt[length=3]", "mam"])
@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_positions_before_the_text_change_no_word(name: str, spec: str, request: Any) -> None:
    source = find_model(str(request.getfixturevalue(name)))
    tokenizer = source.tokenizer()
    model = source.load(BaseChoice(name="fp32"), KIND.head, tokenizer.pad_token_id).model
    adapted_model(model, dk.parse_method(spec))
    words = [["the", "film"], ["end"] * 7]
    rows = Dataset.from_dict({"tokens": words, "label": [[0, 1], [2] * 7]})
    data = KIND.encode(rows, tokenizer, 24)
    assert model(**KIND.collate(list(data), tokenizer)).loss.isfinite()
    found = predict(model, data, KIND, tokenizer)
    assert [len(tags) for tags in found.predicted] == [2, 7]  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_every_kind_of_method_is_compared(
    name: str, asked: Any, make: SimpleNamespace, tasks: Any, request: Any, tmp_path: Path
) -> None:
    model = str(request.getfixturevalue(name))
    file = str(make.lines(tmp_path / "data.jsonl", _rows()))
    methods = "adapter,lora,prefix[length=3],prompt[length=3],mam,fusion,peft:lora"
    request = asked(methods, task=file, source_tasks=(str(tasks.shop),), model=model, epochs=1.0)
    ended = run_plan(build_plan(request), tmp_path / "run")
    assert ended.failures == ()
    assert {row.metric for row in ended.results} == {"span_f1"} and len(ended.results) == 10


def test_the_shipped_task_is_drawn_with_one_seed_and_trained_on(bert: Path) -> None:
    data = load_task("entities")
    assert (len(data.train), len(data.validation), len(data.test)) == (1500, 300, 600)
    assert data.fingerprint.startswith("47dc7a5ce1e198ad")
    train_, test = ({*map(" ".join, part["tokens"])} for part in (data.train, data.test))
    assert not train_ & test
    few = subsample(data, max_train=32, max_eval=16)
    source = find_model(str(bert))
    tokenizer = source.tokenizer()
    model = source.load(BaseChoice(name="fp32"), data.kind.head, tokenizer.pad_token_id).model
    dk.attach(model, dk.parse_method("lora"))
    rows = data.kind.encode(few.train, tokenizer, 40)
    budget = Budget(epochs=1.0, batch_size=16)
    made = train(
        model, rows, data.kind, tokenizer, budget=budget, lr=1e-3, seed=0, progress=Silent()
    )
    assert made.steps == 2
    found = predict(model, data.kind.encode(few.test, tokenizer, 40), data.kind, tokenizer)
    assert 0 <= METRICS.get("span_f1").value(found) <= 1


def test_both_models_load_a_head_for_tags(bert: Path, decoder: Path) -> None:
    for folder in (bert, decoder):
        source = find_model(str(folder))
        loaded = source.load(BaseChoice(name="fp32"), KIND.head, 0)
        assert loaded.fresh == () and loaded.model.num_labels == 3
