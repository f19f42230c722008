"""Answers out of a context: what is read, windows, no answer, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.run.predict import predict, predictions_of
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.data.squad import Given, answers_of
from deltakit.compare.tasks.kinds import Spans
from deltakit.errors import InvalidConfig
from deltakit.models.source import BaseChoice, find_model

CONTEXT = "ben took two books to the garage and ann went home"
QUESTIONS = [
    ("what did ben take", CONTEXT, ["9:two books"]),
    ("who went", CONTEXT, ["37:ann"]),
    ("who slept", CONTEXT, ["-1:"]),
    ("where", "the garage", ["4:garage", "0:the garage"]),
]
FP32 = BaseChoice(name="fp32")


def rows(questions: Any = QUESTIONS) -> Dataset:
    text, context, label = zip(*questions, strict=True)
    return Dataset.from_dict({"text": text, "context": context, "label": label})


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A whole-word tokenizer that knows the words of the questions."""
    words = sorted({word for q, c, _ in QUESTIONS for word in f"{q} {c}".split()})
    ids = {word: at for at, word in enumerate(("[PAD]", "[CLS]", "[SEP]", *words))}
    inner = Tokenizer(models.WordLevel(ids, unk_token="[PAD]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 1), ("[SEP]", 2)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]")


class _Finder(torch.nn.Module):
    """Likes one word as the first of an answer and one as its last, and [CLS] a little."""

    device = torch.device("cpu")

    def __init__(self, first: int, last: int, null: float = -1.0) -> None:
        super().__init__()
        self.first, self.last, self.null = first, last, null

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        start, end = (5.0 * (input_ids == each) for each in (self.first, self.last))
        start[:, 0] = self.null
        return SimpleNamespace(start_logits=start, end_logits=end)


@pytest.mark.parametrize("length", [64, 16, 12])
def test_the_answer_is_marked_in_every_window_that_has_it_whole(
    length: int, tokenizer: Any
) -> None:
    data = Spans().encode(rows(), tokenizer, length)
    for row, (_, context, labels) in zip(data, QUESTIONS, strict=True):
        assert all(len(window["input_ids"]) <= length for window in row["windows"])
        answer, found = labels[0].partition(":")[2], 0
        for window, (first, last), offsets in zip(
            row["windows"], row["spans"], row["offsets"], strict=True
        ):
            said = context[offsets[first][0] : offsets[last][1]] if first else ""
            words = tokenizer.convert_ids_to_tokens(window["input_ids"])
            whole = answer in " ".join(words).split("[SEP]")[1]
            assert said == (answer if whole else "")
            found += bool(said)
        assert bool(found) == bool(answer)
        read = {
            at for offsets in row["offsets"] for first, end in offsets for at in range(first, end)
        }
        assert read >= {at for at, letter in enumerate(context) if letter != " "}
    several = sum(len(windows) > 1 for windows in data["windows"])
    assert bool(several) == (length < 64) == bool(Spans().notes(data))


@pytest.mark.parametrize("length", [64, 12])
def test_the_best_span_of_all_windows_is_the_answer(length: int, tokenizer: Any) -> None:
    ids = tokenizer.get_vocab()
    data = Spans(unanswerable=True).encode(rows(), tokenizer, length)
    finder: Any = _Finder(ids["two"], ids["books"])
    found = predict(finder, data, Spans(unanswerable=True), tokenizer)
    assert found.predicted[:3] == ("two books",) * 3
    assert found.labels == (("two books",), ("ann",), ("",), ("garage", "the garage"))
    sure: Any = _Finder(ids["two"], ids["books"], null=20.0)
    assert predict(sure, data, Spans(unanswerable=True), tokenizer).predicted == ("",) * 4
    assert predict(sure, data, Spans(), tokenizer).predicted[0] == "two books"


def test_an_answer_neither_runs_backwards_nor_lies_in_the_question(tokenizer: Any) -> None:
    ids = tokenizer.get_vocab()
    data = Spans().encode(rows(QUESTIONS[:1]), tokenizer, 64)
    backwards: Any = _Finder(ids["home"], ids["took"])
    (said,) = predict(backwards, data, Spans(), tokenizer).predicted
    assert said in CONTEXT and said not in ("", "what") and "home took" not in str(said)
    asked: Any = _Finder(ids["what"], ids["did"])
    assert predict(asked, data, Spans(), tokenizer).predicted[0] in CONTEXT


def test_a_long_question_leaves_half_of_the_room(tokenizer: Any) -> None:
    long = [("who " * 40, CONTEXT, ["37:ann"])]
    (row,) = Spans().encode(rows(long), tokenizer, 16)
    assert all(len(window["input_ids"]) <= 16 for window in row["windows"])
    assert (row["input_ids"].count(tokenizer.get_vocab()["who"])) == 8


def test_the_constant_is_the_most_frequent_answer(tokenizer: Any) -> None:
    kind = Spans(unanswerable=True)
    data = kind.encode(rows([*QUESTIONS, QUESTIONS[2]]), tokenizer, 64)
    constant = kind.majority_prediction(data, data, tokenizer)
    assert constant.values == [""] * 5
    found = predictions_of(kind, data, constant)
    assert METRICS.get("answer_f1").value(found) == METRICS.get("answer_exact").value(found) == 0.4


@pytest.mark.parametrize("spec", ["adapter", "lora", "prefix[length=3]", "prompt[length=3]", "mam"])
def test_methods_train_and_predict(spec: str, bert: Path) -> None:
    source = find_model(str(bert))
    words = source.tokenizer()
    model = source.load(FP32, Spans().head, words.pad_token_id).model
    adapted_model(model, dk.parse_method(spec))
    data = Spans().encode(rows([("the film", "a story and the end " * 4, ["2:story"])]), words, 16)
    batch = Spans().collate(list(data), words)
    assert model(**batch).loss.isfinite()
    assert set(Spans().without_labels(batch)) == {"input_ids", "attention_mask", "token_type_ids"}
    assert predict(model, data, Spans(), words).predicted[0] in "a story and the end " * 4


# ---------------------------------------------------------------------------- what data looks like


def squad(path: Path, *, version: str = "v2.0") -> Path:
    qas = [
        {"id": str(at), "question": text, "answers": answers, "is_impossible": not answers}
        for at, (text, answers) in enumerate(
            [
                ("what", [{"text": "two books", "answer_start": 9}] * 2),
                ("who", [{"text": "ann", "answer_start": 37}]),
                ("why", []),
            ]
        )
    ]
    articles = [
        {"title": "t", "paragraphs": [{"context": f"{CONTEXT} {at}", "qas": qas}]}
        for at in range(10)
    ]
    path.write_text(json.dumps({"version": version, "data": articles}, indent=1))
    return path


def test_squads_own_files_are_read(tmp_path: Path) -> None:
    data = load_task(str(squad(tmp_path / "train.json")))
    assert data.kind == Spans(unanswerable=True) and data.metric == "answer_f1"
    assert len(data.train) + len(data.validation) + len(data.test) == 30
    labels = {tuple(label) for label in data.train["label"]}
    assert labels == {("9:two books",), ("37:ann",), ("-1:",)}


@pytest.mark.parametrize(
    ("cell", "known"),
    [
        ("two books", [("two books", None)]),
        (["two", "books"], [("two", None), ("books", None)]),
        ({"text": ["two"], "answer_start": [9]}, [("two", 9)]),
        ([{"text": "two", "answer_start": 9}], [("two", 9)]),
        ("{'text': ['two'], 'answer_start': [9]}", [("two", 9)]),
        ('{"text": ["two"], "answer_start": [9]}', [("two", 9)]),
        ("{'text': [], 'answer_start': []}", []),
        (1912, [("1912", None)]),
        (None, []),
        ("", []),
        ([], []),
        ("[sic] he said", [("[sic] he said", None)]),
        ({"texts": 1}, None),
        (True, None),
        ([{"answer": 1}], None),
    ],
)
def test_forms_of_an_answer(cell: Any, known: Any) -> None:
    assert answers_of(cell) == (None if known is None else [Given(*each) for each in known])


def _lines(make: SimpleNamespace, path: Path, last: Any, **changes: Any) -> str:
    many = [{"question": f"q{n}", "context": CONTEXT, "answer": "ann"} for n in range(30)]
    return str(make.lines(path, [*many, {**many[0], "question": "q", "answer": last, **changes}]))


def test_columns_and_other_names(make: SimpleNamespace, tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    data = load_task(_lines(make, file, {"text": ["took"], "answer_start": [3]}))
    found = {
        tuple(label) for part in (data.train, data.validation, data.test) for label in part["label"]
    }
    assert found == {("37:ann",), ("4:took",)}  # a start that is a little wrong is set right
    other = [{"q": f"q{n}", "doc": CONTEXT, "a": "ann"} for n in range(30)]
    names = ColumnNames(text="q", pair="doc", label="a")
    renamed = load_task(str(make.lines(file, other)), names, kind="spans")
    assert set(renamed.train.column_names) == {"text", "context", "label"}
    with pytest.raises(InvalidConfig, match=r"no column 'context'.*--pair-column"):
        load_task(str(file), ColumnNames(text="q", label="a"), kind="spans")


@pytest.mark.parametrize(
    ("answer", "changes", "message"),
    [
        ("Paris", {}, r"row 31: .* holds 'Paris', which is not in the context\. Give answers as"),
        (True, {}, r"row 31: .* holds True, which is not an answer\. Give the text"),
        ("ann", {"context": None}, r"row 31: the column 'context' holds None, not a text"),
    ],
)
def test_what_is_no_answer_is_refused(
    answer: Any, changes: Any, message: str, make: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(InvalidConfig, match=message) as caught:
        load_task(_lines(make, tmp_path / "data.jsonl", answer, **changes))
    assert "\n" not in str(caught.value)


def test_conflicts_and_leaks_are_told(make: SimpleNamespace, tmp_path: Path) -> None:
    _lines(make, tmp_path / "train.jsonl", "two", question="q1")
    make.lines(tmp_path / "test.jsonl", [{"question": "q2", "context": CONTEXT, "answer": ""}])
    notes = load_task(str(tmp_path)).notes
    assert any("train: 1 texts occur with different labels" in note for note in notes)
    assert any("test: 1 of 1 examples have a text that is in train too, 1 of" in n for n in notes)
    assert any("no question is predicted to have none" in note for note in notes)


def test_a_decoder_without_a_class_for_it_is_refused(
    asked: Any, make: SimpleNamespace, decoder: Path, tmp_path: Path
) -> None:
    file = _lines(make, tmp_path / "data.jsonl", "ann")
    assert build_plan(asked("lora", task=file, source_tasks=())).task.kind.name == "spans"
    with pytest.raises(InvalidConfig, match=r"\(llama\) cannot find an answer in a text.*minilm"):
        build_plan(asked("lora", task=file, source_tasks=(), model=str(decoder)))
