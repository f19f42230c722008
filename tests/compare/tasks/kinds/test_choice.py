"""Several endings: what is read, how both architectures are asked, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn.functional import log_softmax

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import Predictions, Scores
from deltakit.compare.run.predict import predict, predictions_of
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.kinds.choice import ByHead, ByLikelihood, Choice
from deltakit.errors import InvalidConfig
from deltakit.models.source import BaseChoice, find_model

ROWS = {
    "text": ["the film and", "a story of the end and a scene", ""],
    "choices": [["great", "the plot of the story"], ["boring", "end", "a team"], ["a", "the film"]],
    "label": [0, 2, 1],
}
DECODER = Choice(most=3, chooser=ByLikelihood())
ENCODER = Choice(most=3, chooser=ByHead())


def loaded(folder: Path, kind: Choice) -> SimpleNamespace:
    source = find_model(str(folder))
    tokenizer = source.tokenizer()
    torch.manual_seed(0)
    model = source.load(BaseChoice(name="fp32"), kind.head, tokenizer.pad_token_id).model.eval()
    data = kind.encode(Dataset.from_dict(ROWS), tokenizer, 24)
    return SimpleNamespace(model=model, tokenizer=tokenizer, data=data)


def by_hand(model: Any, tokenizer: Any, question: str, choice: str) -> float:
    """The log-likelihood of an ending as lm-eval counts it, one token after the other."""
    before = [tokenizer.bos_token_id]
    before += tokenizer(question, add_special_tokens=False)["input_ids"]
    aim = tokenizer(f" {choice}", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([[*before, *aim]])).logits[0].double()
    chances = log_softmax(logits, -1)
    return sum(chances[len(before) - 1 + at, token].item() for at, token in enumerate(aim))


def test_likelihoods_are_those_of_the_endings_tokens(decoder: Path) -> None:
    it = loaded(decoder, DECODER)
    found = predict(it.model, it.data, DECODER, it.tokenizer)
    assert found.scores is not None and found.labels == (0, 2, 1)
    for row, (question, choices) in enumerate(zip(ROWS["text"], ROWS["choices"], strict=True)):
        plain = [by_hand(it.model, it.tokenizer, question, each) for each in choices]
        assert found.predicted[row] == int(np.argmax(plain))
        for_length = [one / len(each) for one, each in zip(plain, choices, strict=True)]
        scores = found.scores.array[row]
        assert scores[: len(choices)] == pytest.approx(for_length, abs=1e-5)
        assert (scores[len(choices) :] == -np.inf).all()


def test_the_loss_is_that_of_the_right_ending(decoder: Path) -> None:
    it = loaded(decoder, DECODER)
    batch = DECODER.collate(list(it.data), it.tokenizer)
    rights = [choices[at] for choices, at in zip(ROWS["choices"], ROWS["label"], strict=True)]
    pairs = zip(ROWS["text"], rights, strict=True)
    whole = -sum(by_hand(it.model, it.tokenizer, *pair) for pair in pairs)
    words = sum(len(right.split()) for right in rights)
    assert it.model(**batch).loss.item() == pytest.approx(whole / words, rel=1e-5)


def test_an_encoder_reads_each_pair_and_never_chooses_an_ending_that_is_not_there(
    bert: Path,
) -> None:
    it = loaded(bert, ENCODER)
    batch = ENCODER.collate(list(it.data), it.tokenizer)
    assert batch["input_ids"].shape[:2] == (3, 3) and batch["labels"].tolist() == [0, 2, 1]
    found = predict(it.model, it.data, ENCODER, it.tokenizer)
    assert found.scores is not None and np.isinf(found.scores.array).sum() == 2
    one = it.tokenizer(ROWS["text"][1], "a team", return_tensors="pt")
    with torch.no_grad():
        alone = it.model(**{key: value[None] for key, value in one.items()}).logits
    assert found.scores.array[1, 2] == pytest.approx(alone.item(), abs=1e-5)


@pytest.mark.parametrize("spec", ["adapter", "lora", "prefix[length=3]", "prompt[length=3]", "mam"])
@pytest.mark.parametrize("name", ["bert", "decoder"])
def test_methods_train_and_predict(name: str, spec: str, request: Any) -> None:
    kind = ENCODER if name == "bert" else DECODER
    it = loaded(request.getfixturevalue(name), kind)
    adapted_model(it.model, dk.parse_method(spec))
    assert it.model(**kind.collate(list(it.data), it.tokenizer)).loss.isfinite()
    together = predict(it.model, it.data, kind, it.tokenizer)
    alone = [predict(it.model, it.data.select([at]), kind, it.tokenizer) for at in range(3)]
    for row, each in enumerate(alone):
        assert each.scores is not None and together.scores is not None
        assert together.scores.array[row] == pytest.approx(each.scores.array[0], abs=1e-5)


def test_accuracy_for_length_is_of_the_scores() -> None:
    scores = Scores([[-1.0, -0.5, -np.inf], [-2.0, -1.0, -3.0]])
    found = Predictions(labels=(1, 0), predicted=(0, 0), scores=scores)
    assert METRICS.get("accuracy_norm").value(found) == 0.5 == METRICS.get("accuracy").value(found)


def test_the_constant_is_the_most_frequent_place(bert: Path) -> None:
    it = loaded(bert, ENCODER)
    train = it.data.select([0, 0, 1])
    constant = ENCODER.majority_prediction(train, it.data, it.tokenizer)
    assert constant.values == [0, 0, 0]
    found = predictions_of(ENCODER, it.data, constant)
    for metric in ENCODER.metrics:
        assert METRICS.get(metric).value(found) == pytest.approx(1 / 3)


# ---------------------------------------------------------------------------- what data looks like


def _load(make: SimpleNamespace, path: Path, rows: list[dict[str, Any]], **asked: Any) -> Any:
    return load_task(str(make.lines(path / "data.jsonl", rows)), **asked)


def _many(**columns: Any) -> list[dict[str, Any]]:
    return [{"question": f"q{n}", **columns} for n in range(30)]


@pytest.mark.parametrize(
    "columns",
    [
        {"choices": ["x", "y", "z"], "answer": 2},
        {"choices": ["x", "y", "z"], "answer": "2"},
        {"choices": ["x", "y", "z"], "answer": "C"},
        {"choices": ["x", "y", "z"], "answer": "z"},
        {"choices": ["x", "y", "z"], "answer": 2.0},
        {"choices": "['x', 'y', 'z']", "answer": "C"},
        {"endings": ["x", "y", "z"], "label": 2},
        {"ending0": "x", "ending1": "y", "ending2": "z", "label": 2},
        {"choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answer": "3"},
    ],
)
def test_forms_of_choices_and_of_answers(
    columns: Any, make: SimpleNamespace, tmp_path: Path
) -> None:
    data = _load(make, tmp_path, _many(**columns))
    assert data.kind == Choice(most=3) and data.metric == "accuracy"
    assert data.test[0] == {**data.test[0], "choices": ["x", "y", "z"], "label": 2}


def test_columns_of_other_names(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = [{"ctx": f"q{n}", "endings": [1, 2], "right": n % 2} for n in range(30)]
    names = ColumnNames(text="ctx", label="right")
    data = _load(make, tmp_path, rows, names=names, kind="choice")
    assert data.train[0]["choices"] == ["1", "2"] and len(set(data.train["label"])) == 2


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"answer": 3}, r"row 31: .* holds 3, which is none of the 2 choices\. Give a number"),
        (
            {"choices": ["1", "0"], "answer": "0"},
            r"row 31: .* holds '0', which can be read in two ways of the 2 choices",
        ),
        (
            {"choices": ["x", "y", "x"], "answer": "x"},
            r"row 31: .* holds 'x', which can be read in two ways of the 3 choices",
        ),
        ({"answer": None}, r"row 31: .* has no answer, which is none of the 2 choices"),
        ({"answer": "-1"}, r"row 31: .* holds '-1', which is none of the 2 choices"),
        ({"choices": ["x"]}, r"row 31: .* is of one choice, 'x'"),
        ({"choices": None}, r"row 31: the column 'choices' holds None, not a list of words"),
    ],
)
def test_what_is_no_choice_is_refused(
    columns: Any, message: str, make: SimpleNamespace, tmp_path: Path
) -> None:
    rows = _many(choices=["x", "y"], answer=0)
    with pytest.raises(InvalidConfig, match=message) as caught:
        _load(make, tmp_path, [*rows, {**rows[0], "question": "q", **columns}])
    assert "\n" not in str(caught.value)


def test_conflicts_and_leaks_are_told(make: SimpleNamespace, tmp_path: Path) -> None:
    rows = _many(choices=["x", "y"], answer=0)
    make.lines(tmp_path / "train.jsonl", [*rows, {**rows[1], "answer": 1}])
    make.lines(tmp_path / "validation.jsonl", [{**rows[2], "question": "new"}])
    make.lines(tmp_path / "test.jsonl", [{**rows[2], "answer": 1}])
    notes = load_task(str(tmp_path)).notes
    assert any("train: 1 texts occur with different labels" in note for note in notes)
    assert any("test: 1 of 1 examples have a text that is in train too, 1 of" in n for n in notes)


def test_a_model_is_asked_as_its_architecture_can(
    asked: Any, make: SimpleNamespace, bert: Path, decoder: Path, tmp_path: Path
) -> None:
    rows = _many(choices=["x", "y"], answer=0)
    file = str(make.lines(tmp_path / "data.jsonl", [*rows, {**rows[0], "answer": 1}]))
    for model, chooser in ((bert, ByHead()), (decoder, ByLikelihood())):
        request = asked(
            "lora", task=file, model=str(model), source_tasks=(), metric="accuracy_norm"
        )
        plan = build_plan(request)
        assert plan.task.kind.chooser == chooser and plan.task.metric == "accuracy_norm"


def marked(folder: Path, marks: list[str], answers: list[Any]) -> Path:
    """A file whose choices have marks, and answers that name one."""
    texts = ["red", "green", "blue"]
    rows = [
        {"question": f"q{n}", "choices": {"text": texts, "label": marks}, "answer": answer}
        for n, answer in enumerate(answers * 10)
    ]
    path = folder / "marks.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("answers", [["1", "2", "3"], [1, 2, 3], [1.0, 2.0, 3.0]])
def test_a_number_is_the_mark_before_it_is_a_place(tmp_path: Path, answers: list[Any]) -> None:
    task = load_task(str(marked(tmp_path, ["1", "2", "3"], answers)))
    found = {row["text"]: row["label"] for split in (task.train, task.test) for row in split}
    assert {found[name] for name in found if int(name[1:]) % 3 == 0} == {0}


@pytest.mark.parametrize("stranger", ["0", 0, "4"])
def test_a_number_that_is_no_mark_is_no_place(tmp_path: Path, stranger: Any) -> None:
    path = marked(tmp_path, ["1", "2", "3"], ["1", "2", stranger])
    with pytest.raises(InvalidConfig, match="row 3: .*which is none of the 3 choices"):
        load_task(str(path))


def test_a_place_beside_letters_stays_a_place(tmp_path: Path) -> None:
    task = load_task(str(marked(tmp_path, ["A", "B", "C"], [0, 1, 2])))
    assert set(task.train["label"]) == {0, 1, 2}


def test_a_row_of_fewer_endings_than_columns_has_no_blank_ones(tmp_path: Path) -> None:
    """An ending without a token would be the likeliest of all."""
    path = tmp_path / "rows.csv"
    lines = [f"q{n},red,green,{'blue' if n % 2 else ''},{n % 2}" for n in range(20)]
    path.write_text("question,ending0,ending1,ending2,label\n" + "\n".join(lines))
    task = load_task(str(path))
    assert {len(each) for each in task.train["choices"]} == {2, 3}
    path.write_text(path.read_text().replace("red,green,blue", "red,,blue"))
    with pytest.raises(InvalidConfig, match="row 2: .*is of a blank choice, 'red', '', 'blue'"):
        load_task(str(path))
