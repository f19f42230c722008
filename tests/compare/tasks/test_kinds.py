"""Each kind of task: learned, resumed and reported; what a model is asked, and how it is judged."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.api import run_plan
from deltakit.compare.plan.request import Budget
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.run import context as workshop
from deltakit.compare.run.predict import predict
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.train import train
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.kinds import KINDS, Answers, Causal, MultiLabel, Regression
from deltakit.compare.tasks.kinds.sequence import PROBABILISTIC
from deltakit.errors import InvalidConfig
from deltakit.models.source import BaseChoice, find_model

FP32 = BaseChoice(name="fp32")
STARS = {"awful": 0.5, "weak": 1.5, "moving": 3.5, "great": 4.5}
TOPICS = {"goal": "sport", "phone": "tech", "bank": "money"}
ANSWERS = {"goal": "team", "phone": "code", "bank": "market price"}
CYCLE = ("the", "film", "and", "story", "of", "actor", "end", "plot")


def around(draw: random.Random, words: Sequence[str]) -> str:
    """The words among one to four others."""
    fillers = [draw.choice(("the", "a", "film", "story")) for _ in range(draw.randrange(1, 5))]
    return " ".join(draw.sample([*fillers, *words], len(fillers) + len(words)))


def classification(draw: random.Random) -> dict[str, Any]:
    word = draw.choice(list(TOPICS))
    return {"text": around(draw, [word]), "label": TOPICS[word]}


def regression(draw: random.Random) -> dict[str, Any]:
    word = draw.choice(list(STARS))
    return {"text": around(draw, [word]), "label": STARS[word]}


def multilabel(draw: random.Random) -> dict[str, Any]:
    words = [word for word in TOPICS if draw.random() < 0.5]
    return {"text": around(draw, ["the", *words]), "label": [TOPICS[word] for word in words]}


def causal(draw: random.Random) -> dict[str, Any]:
    start, length = draw.randrange(len(CYCLE)), draw.randrange(4, 12)
    return {"text": " ".join(CYCLE[(start + n) % len(CYCLE)] for n in range(length))}


def answers(draw: random.Random) -> dict[str, Any]:
    word = draw.choice(list(TOPICS))
    return {"prompt": around(draw, [word]), "answer": ANSWERS[word]}


def tokens(draw: random.Random) -> dict[str, Any]:
    words = around(draw, [draw.choice(list(TOPICS)) for _ in range(draw.randrange(3))]).split()
    return {"tokens": words, "tags": [f"B-{TOPICS[w]}" if w in TOPICS else "O" for w in words]}


def spans(draw: random.Random) -> dict[str, Any]:
    word = draw.choice(list(TOPICS))
    return {"question": "the end", "context": around(draw, [word]), "answer": word}


def choice(draw: random.Random) -> dict[str, Any]:
    word = draw.choice(list(TOPICS))
    choices = draw.sample([*ANSWERS.values()], 3)
    right = choices.index(ANSWERS[word])
    return {"question": around(draw, [word]), "choices": choices, "answer": "ABC"[right]}


MAKERS = {
    "classification": classification,
    "regression": regression,
    "multilabel": multilabel,
    "causal": causal,
    "answers": answers,
    "tokens": tokens,
    "spans": spans,
    "choice": choice,
}
ELSEWHERE = ("chat", "generation", "images")
"""Kinds that have test files of their own."""
USUAL = {
    "regression": ("pearson", "Score"),
    "multilabel": ("f1_micro", "Score %"),
    "causal": ("perplexity", "Score ↓"),
    "answers": ("exact_match", "Score %"),
    "tokens": ("span_f1", "Score %"),
    "spans": ("answer_f1", "Score %"),
    "choice": ("accuracy", "Score %"),
}
"""The usual metric of a kind, and the title of its column."""
NEW = tuple(USUAL)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace) -> dict[str, Path]:
    """A task folder of each kind."""
    root = tmp_path_factory.mktemp("kinds")
    for name, maker in MAKERS.items():
        for split, n in (("train", 96), ("validation", 12), ("test", 24)):
            draw = random.Random(f"{name} {split}")
            make.lines(root / name / f"{split}.jsonl", [maker(draw) for _ in range(n)])
    return {name: root / name for name in MAKERS}


Asked = Callable[..., Any]


@pytest.fixture
def ask(asked: Asked, folders: dict[str, Path], decoder: Path) -> Asked:
    """A request on the task of a kind, with a model that can do it."""

    def request(name: str, methods: str = "head", **changes: Any) -> Any:
        decodes = name in ("causal", "answers")
        usual = {
            **({"model": str(decoder)} if decodes else {}),
            **({"kind": "causal"} if name == "causal" else {}),
        }
        budget = {"epochs": 8.0, "batch_size": 8}
        return asked(methods, task=str(folders[name]), **{**usual, **budget, **changes})

    return request


@pytest.fixture
def ready(bert: Path, decoder: Path, folders: dict[str, Path]) -> Callable[[str], SimpleNamespace]:
    """A task of a kind, encoded, and a model with random values."""

    def prepare(kind: str) -> SimpleNamespace:
        task = load_task(str(folders[kind]), kind=kind)
        source = find_model(str(decoder if kind in ("causal", "answers") else bert))
        tokenizer = source.tokenizer()
        torch.manual_seed(0)
        model = source.load(FP32, task.kind.head, tokenizer.pad_token_id).model
        for name, parameter in model.named_parameters():
            if name.startswith("classifier."):  # drawn so small that all rows get one label
                torch.nn.init.normal_(parameter)
        data = task.kind.encode(task.test, tokenizer, 24)
        return SimpleNamespace(
            task=task, kind=task.kind, model=model, tokenizer=tokenizer, data=data
        )

    return prepare


# --------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", NEW)
def test_each_kind_is_learned_resumed_and_reported(
    name: str, ask: Asked, trainings: Any, tmp_path: Path
) -> None:
    first = run_plan(build_plan(ask(name)), tmp_path / "run")
    assert first.failures == ()
    rows = {row.method: row for row in first.results}
    metric = METRICS.get(USUAL[name][0])
    assert {row.metric for row in first.results} == {metric.name}
    ranks = {method: metric.direction.rank(row.score or 0.0) for method, row in rows.items()}
    assert ranks["full"] > ranks["majority"] and ranks["full"] > ranks["head"]
    for row in first.results:
        assert row.score_low is not None and row.score is not None and row.score_high is not None
        assert row.score_low <= row.score <= row.score_high
    table = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert f" {USUAL[name][1]} |" in table and metric.title in table

    before, count = (tmp_path / "run" / "results.csv").read_bytes(), trainings.count
    again = run_plan(build_plan(ask(name)), tmp_path / "run")
    assert (again.reused, trainings.count) == (len(first.results), count)
    assert again.predictions == first.predictions
    assert (tmp_path / "run" / "results.csv").read_bytes() == before


def test_what_trains_nothing_is_the_base_as_it_is(
    ask: Asked, ready: Callable[[str], SimpleNamespace], tmp_path: Path
) -> None:
    outcome = run_plan(build_plan(ask("causal", trials=2, lr=None, epochs=1.0)), tmp_path / "run")
    assert outcome.failures == ()
    head = next(row for row in outcome.results if row.method == "head")
    assert (head.train_steps, head.trained_params, head.head_params) == (0, 0, 0)
    assert head.lr is head.lr_edge is head.train_step_ms is head.final_loss is None
    base = ready("causal")
    alone = predict(base.model, base.data, base.kind, base.tokenizer)
    assert METRICS.get("perplexity").value(alone) == pytest.approx(head.score, rel=1e-6)


def test_a_base_too_large_to_be_fine_tuned_is_compared_all_the_same(
    ask: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("bitsandbytes")

    def no_room() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(workshop, "ceiling", no_room)
    request = ask("answers", "lora", bases=("nf4",), epochs=1.0)
    outcome = run_plan(build_plan(request), tmp_path / "run")
    assert outcome.failures == ()
    lora = next(row for row in outcome.results if row.method == "lora")
    assert lora.train_step_ms is not None and lora.train_step_vs_full is None
    assert any("does not fit" in note for note in outcome.run.notes)


def test_a_search_takes_the_rate_of_the_lowest_perplexity(ask: Asked, tmp_path: Path) -> None:
    request = ask("causal", "full", trials=2, lr=None, lr_grid=(1e-9, 1e-2), epochs=2.0)
    outcome = run_plan(build_plan(request), tmp_path / "run")
    full = next(row for row in outcome.results if row.method == "full")
    assert (full.lr, full.lr_edge) == (1e-2, "high")


def test_a_fusion_takes_adapters_of_tasks_of_another_kind(
    ask: Asked, folders: dict[str, Path], tmp_path: Path
) -> None:
    request = ask("answers", "fusion", source_tasks=(str(folders["classification"]),), epochs=1.0)
    outcome = run_plan(build_plan(request), tmp_path / "run")
    assert outcome.failures == ()
    assert outcome.results[-1].method == "fusion"


@pytest.mark.parametrize(
    "name", [n if n == "spans" else pytest.param(n, marks=pytest.mark.slow) for n in NEW]
)
def test_a_kind_runs_in_bf16(name: str, ask: Asked, tmp_path: Path) -> None:
    request = ask(name, bases=("bf16",), epochs=1.0)
    assert run_plan(build_plan(request), tmp_path / "run").failures == ()


# -------------------------------------------------------------- batches do not change anything


@pytest.mark.parametrize("name", MAKERS)
def test_neither_batches_nor_padding_change_a_rows_result(
    name: str, ready: Callable[[str], SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = ready(name)
    together = predict(it.model, it.data, it.kind, it.tokenizer)
    assert len(set(together.predicted)) > 1
    monkeypatch.setattr(type(it.kind), "batch_size", 1)
    alone = predict(it.model, it.data, it.kind, it.tokenizer)
    order = torch.randperm(len(it.data)).tolist()
    monkeypatch.setattr(type(it.kind), "batch_size", 5)
    mixed = predict(it.model, it.data.select(order), it.kind, it.tokenizer)
    assert together.labels == alone.labels
    assert mixed.labels == tuple(alone.labels[row] for row in order)
    for found, row in zip(mixed.predicted, order, strict=True):
        _same(found, alone.predicted[row])
    for found, expected in zip(together.predicted, alone.predicted, strict=True):
        _same(found, expected)
    if together.scores is not None:
        assert alone.scores is not None and mixed.scores is not None
        assert np.abs(together.scores.array - alone.scores.array).max() < 1e-5
        assert np.abs(mixed.scores.array - alone.scores.array[order]).max() < 1e-5


def _same(found: Any, expected: Any) -> None:
    if isinstance(expected, float):
        expected = pytest.approx(expected, rel=1e-5)
    assert found == expected


# ------------------------------------------------------------------------------------ regression


def test_numbers_are_trained_on_as_deviations_and_scored_as_they_are(
    ready: Callable[[str], SimpleNamespace],
) -> None:
    it = ready("regression")
    train = it.kind.encode(it.task.train, it.tokenizer, 24)
    aims = torch.tensor(train["labels"], dtype=torch.float64)
    assert aims.mean().item() == pytest.approx(0, abs=1e-9)
    assert aims.std(correction=0).item() == pytest.approx(1)
    assert set(train["truth"]) <= set(STARS.values())
    mean = sum(train["truth"]) / len(train)
    constant = it.kind.majority_prediction(train, it.data, it.tokenizer)
    assert constant.values == [pytest.approx(mean)] * len(it.data) and constant.scores is None
    assert it.kind.decode(torch.tensor([[0.0], [1.0]])) == [
        pytest.approx(it.kind.mean),
        pytest.approx(it.kind.mean + it.kind.deviation),
    ]


# ----------------------------------------------------------------------------------- multi-label


def test_labels_are_predicted_one_by_one() -> None:
    kind = MultiLabel(names=("a", "b", "c"))
    assert kind.decode(torch.tensor([[0.1, -3.0, 2.0], [-1.0, -1.0, -1.0]])) == [
        (1, 0, 1),
        (0, 0, 0),
    ]


# ----------------------------------------------------------------------------------- probabilities


@pytest.mark.parametrize("name", MAKERS)
def test_predictions_hold_the_models_probabilities(
    name: str, ready: Callable[[str], SimpleNamespace]
) -> None:
    it = ready(name)
    found = predict(it.model, it.data, it.kind, it.tokenizer)
    if not set(PROBABILISTIC) & set(it.kind.metrics):
        assert (found.scores is None) == (name != "choice")  # of lengths, no probabilities
        return
    assert found.scores is not None and found.classes == it.kind.labels
    scores = found.scores.array
    assert scores.shape == (len(it.data), len(it.kind.labels)) and (scores > 0).all()
    batch = it.kind.collate(list(it.data.select([0])), it.tokenizer)
    with torch.no_grad():
        logits = it.model(**batch).logits[0].double()
    if isinstance(it.kind, MultiLabel):
        expected = logits.sigmoid()
        assert [tuple(row) for row in (scores > 0.5).astype(int).tolist()] == [*found.predicted]
    else:
        expected = logits.softmax(-1)
        assert scores.sum(1) == pytest.approx(1)
        assert scores.argmax(1).tolist() == [*found.predicted]
    assert scores[0] == pytest.approx(expected.numpy(), abs=1e-6)
    for metric in it.kind.metrics:
        assert math.isfinite(METRICS.get(metric).value(found)), metric


@pytest.mark.parametrize("name", MAKERS)
def test_the_constant_row_has_the_frequencies_of_train(
    name: str, ready: Callable[[str], SimpleNamespace]
) -> None:
    it = ready(name)
    train = it.kind.encode(it.task.train, it.tokenizer, 24)
    constant = it.kind.majority_prediction(train, it.data, it.tokenizer)
    assert len(constant.values) == len(it.data)
    if not set(PROBABILISTIC) & set(it.kind.metrics):
        assert (constant.scores is None) == (name != "choice")
        return
    truth = np.asarray(train["truth"])
    share = truth.mean(0) if truth.ndim > 1 else np.bincount(truth) / len(truth)
    assert constant.scores is not None
    assert np.asarray(constant.scores) == pytest.approx(np.tile(share, (len(it.data), 1)))


# -------------------------------------------------------------------------- texts, token by token


def test_the_loss_is_a_mean_over_the_tokens_of_the_texts_and_nothing_else(
    ready: Callable[[str], SimpleNamespace],
) -> None:
    it = ready("causal")
    batch = it.kind.collate(list(it.data), it.tokenizer)
    lengths = [len(row) for row in it.data["input_ids"]]
    assert len(set(lengths)) > 1
    assert (batch["labels"] != -100).sum(1).tolist() == lengths
    assert torch.equal(batch["labels"] != -100, batch["attention_mask"] == 1)
    found = predict(it.model, it.data, it.kind, it.tokenizer)
    assert found.labels == tuple(length - 1 for length in lengths)
    per_token = sum(found.predicted) / sum(found.labels)
    assert it.model(**batch).loss.item() == pytest.approx(per_token, rel=1e-5)
    assert METRICS.get("perplexity").value(found) == pytest.approx(math.exp(per_token))
    whole = Budget(epochs=1.0, batch_size=len(it.data))
    it.model.train()
    record = train(
        it.model, it.data, it.kind, it.tokenizer, budget=whole, lr=1e-9, seed=0, progress=Silent()
    )
    assert record.losses == (pytest.approx(per_token, rel=1e-5),)


def test_a_texts_likelihood_is_that_of_its_tokens(ready: Callable[[str], SimpleNamespace]) -> None:
    it = ready("causal")
    ids = torch.tensor([it.data[0]["input_ids"]])
    with torch.no_grad():
        logits = it.model(ids).logits[0, :-1]
    expected = cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    found = predict(it.model, it.data.select([0]), it.kind, it.tokenizer)
    assert found.predicted[0] == pytest.approx(expected, rel=1e-5)


def test_the_constant_for_texts_is_the_frequency_of_tokens(
    ready: Callable[[str], SimpleNamespace],
) -> None:
    it = ready("causal")
    found = it.kind.majority_prediction(it.data, it.data, it.tokenizer).values
    tokens = [token for row in it.data["input_ids"] for token in row[1:]]
    size = len(tokens) + len(it.tokenizer)
    first = it.data[0]["input_ids"][1:]
    assert found[0] == pytest.approx(-sum(math.log((1 + tokens.count(t)) / size) for t in first))


# --------------------------------------------------------------------------------- short answers


def test_the_loss_is_taken_of_the_answer_alone(ready: Callable[[str], SimpleNamespace]) -> None:
    it = ready("answers")
    row, said = it.data[0], it.task.test[0]
    plain = it.tokenizer(f"{said['text']} {said['label']}", add_special_tokens=False)["input_ids"]
    assert row["input_ids"] == [it.tokenizer.bos_token_id, *plain, it.tokenizer.eos_token_id]
    size = len(said["label"].split()) + 1
    assert row["labels"] == [-100] * (len(row["input_ids"]) - size) + row["input_ids"][-size:]
    assert row["before"] == row["input_ids"][:-size]
    assert set(it.data["most"]) == {3}  # "market price" and the end


def test_a_long_prompt_loses_its_beginning_and_the_answer_nothing(
    ready: Callable[[str], SimpleNamespace],
) -> None:
    it = ready("answers")
    short = it.kind.encode(it.task.test, it.tokenizer, 6)
    for before, after in zip(it.data, short, strict=True):
        assert len(after["input_ids"]) == min(6, len(before["input_ids"]))
        size = len(after["answer"])
        assert after["input_ids"][-size:] == before["input_ids"][-size:]
        kept = after["before"][1:]
        assert after["before"][0] == it.tokenizer.bos_token_id
        assert kept == before["before"][-len(kept) :]
    with pytest.raises(
        InvalidConfig, match=r"leaves no room for its prompt in 4\. Raise --max-length"
    ):
        it.kind.encode(it.task.test, it.tokenizer, 4)


METHODS = (
    "head",
    "lora",
    "prefix[length=3]",
    "prompt[length=3]",
    "peft:lora",
    "peft:prompt_tuning[num_virtual_tokens=3]",
    "peft:prefix_tuning[num_virtual_tokens=3]",
)


@pytest.mark.filterwarnings("ignore:Position ids are not supported:UserWarning")  # PEFT’s prompts
@pytest.mark.parametrize("spec", METHODS)
def test_methods_are_there_while_generating_and_while_texts_are_judged(
    spec: str, ready: Callable[[str], SimpleNamespace]
) -> None:
    if spec.startswith("peft:"):
        pytest.importorskip("peft")
    it, texts = ready("answers"), ready("causal")
    adapted = adapted_model(it.model, dk.parse_method(spec))
    adapted.attach()
    model = adapted.model.eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.5)
    found = predict(model, it.data, it.kind, it.tokenizer)
    assert found.predicted == tuple(_greedy(model, row, it.tokenizer) for row in it.data)
    judged = predict(model, texts.data, texts.kind, texts.tokenizer)
    for row, surprise in zip(texts.data["input_ids"], judged.predicted, strict=True):
        ids = torch.tensor([row])
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[
                0, -len(row) :
            ]
        expected = cross_entropy(logits[:-1], ids[0, 1:], reduction="sum").item()
        assert surprise == pytest.approx(expected, rel=1e-5)


def _greedy(model: Any, row: dict[str, Any], tokenizer: Any) -> str:
    """The most likely token, `most` times, with neither a batch nor a cache."""
    ids = torch.tensor([row["before"]])
    for _ in range(row["most"]):
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    new, end = ids[0, len(row["before"]) :].tolist(), tokenizer.eos_token_id
    kept = new[: new.index(end)] if end in new else new
    return tokenizer.decode(kept, skip_special_tokens=True).strip()


def test_what_a_checkpoint_says_of_sampling_counts_for_nothing(
    ready: Callable[[str], SimpleNamespace], decoder: Path, tmp_path: Path
) -> None:
    from transformers import GenerationConfig

    it = ready("answers")
    it.model.save_pretrained(tmp_path)
    it.tokenizer.save_pretrained(tmp_path)
    GenerationConfig(repetition_penalty=9.0, max_new_tokens=1).save_pretrained(tmp_path)
    model = find_model(str(tmp_path)).load(FP32, it.kind.head, 3).model
    other = predict(model, it.data, it.kind, it.tokenizer)
    assert other == predict(it.model, it.data, it.kind, it.tokenizer)


# ------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", ["causal", "answers"])
def test_an_encoder_cannot_continue_a_text(name: str, ask: Asked, bert: Path) -> None:
    match = r"model .* \(bert\) cannot continue a text: .*both directions.*--model.*--kind"
    with pytest.raises(InvalidConfig, match=match) as caught:
        build_plan(ask(name, model=str(bert)))
    assert "\n" not in str(caught.value)


def test_a_metric_must_fit_the_kind(ask: Asked) -> None:
    assert build_plan(ask("regression", metric="mse")).task.metric == "mse"
    match = r"--metric f1 does not fit .* regression .* Fitting: pearson, spearman, r2, mse"
    with pytest.raises(InvalidConfig, match=match):
        build_plan(ask("regression", metric="f1"))
    with pytest.raises(InvalidConfig, match=r"f1 does not fit.*3 classes"):
        build_plan(ask("classification", metric="f1"))


def test_another_metric_is_another_plan(ask: Asked) -> None:
    plans = [build_plan(ask("regression", metric=metric)) for metric in (None, "pearson", "mse")]
    assert plans[0].id == plans[1].id != plans[2].id


# ---------------------------------------------------------------------------- what data looks like


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("classification", {"text": "t", "label": 1}),
        ("classification", {"text": "t", "label": "1.0"}),
        ("classification", {"text": "t", "label": "good"}),
        ("regression", {"text": "t", "label": 0.5}),
        ("regression", {"text": "t", "label": "2.75"}),
        ("multilabel", {"text": "t", "label": ["a"]}),
        ("answers", {"prompt": "t", "answer": "yes"}),
    ],
)
def test_data_that_looks_like_a_kind(
    name: str, row: dict[str, Any], make: SimpleNamespace, tmp_path: Path
) -> None:
    other = {key: 2 if value == 1 else value for key, value in row.items()}
    last = {"label": "0", "answer": "no"}
    last = {
        key: [last[key]] if isinstance(row[key], list) else last[key] for key in row if key in last
    }
    rows = [{**base, "n": n} for n, base in enumerate((row, other, {**row, **last}) * 10)]
    text = next(key for key in row if key in ("text", "prompt"))
    numbered = [{**each, text: f"words {each.pop('n')}"} for each in rows]
    data = load_task(str(make.lines(tmp_path / "data.jsonl", numbered)))
    assert data.kind.name == name
    assert data.metric == data.kind.metrics[0] in METRICS


def lines(make: SimpleNamespace, path: Path, **columns: Sequence[Any]) -> str:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return str(make.lines(path / "data.jsonl", rows))


TEXTS = tuple(f"words {n}" for n in range(30))


def test_a_kind_goes_before_what_data_looks_like(make: SimpleNamespace, tmp_path: Path) -> None:
    file = lines(make, tmp_path, text=TEXTS, label=[1, 2, 3] * 10)
    data = load_task(file, kind="regression")
    assert isinstance(data.kind, Regression)
    assert data.kind.mean == 2
    assert any("1 to 3 in train: this is regression" in note for note in data.notes)
    texts = load_task(file, kind="causal")
    assert isinstance(texts.kind, Causal)
    assert texts.train.column_names == ["text"]
    both = load_task(file, ColumnNames(text="text", label="label"), kind="answers")
    assert isinstance(both.kind, Answers)
    assert set(both.test["label"]) <= {"1", "2", "3"}


def test_labels_with_a_separator(make: SimpleNamespace, tmp_path: Path) -> None:
    file = lines(make, tmp_path, text=TEXTS, label=["b; a", "", "c"] * 10)
    data = load_task(file, ColumnNames(separator=";"))
    assert data.kind == MultiLabel(names=("a", "b", "c"))
    found = {tuple(label) for split in (data.train, data.test) for label in split["label"]}
    assert found == {(1, 1, 0), (0, 0, 0), (0, 0, 1)}


def test_blank_texts_are_not_modelled(make: SimpleNamespace, tmp_path: Path) -> None:
    data = load_task(lines(make, tmp_path, text=[*TEXTS, "", " \n"]), kind="causal")
    assert sum(len(split) for split in (data.train, data.validation, data.test)) == 30
    assert "train: 2 blank texts were left out." in data.notes


@pytest.mark.parametrize(
    ("kind", "names", "match"),
    [
        ("causal", {"label": "label"}, r"--label-column label is not for the kind 'causal'"),
        ("causal", {"pair": "text"}, r"--pair-column text is not for .* takes --text-column\."),
        ("answers", {"pair": "text"}, r"--pair-column text is not for the kind 'answers'"),
        ("regression", {"separator": ";"}, r"--label-separator ; is not for .*'regression'"),
        ("ranking", {}, r"unknown kind 'ranking'.*answers, causal, .*classification.*multilabel"),
        ("answers", {}, r"no column 'prompt'.*--text-column"),
    ],
)
def test_options_that_a_kind_has_no_use_for(
    kind: str, names: dict[str, str], match: str, make: SimpleNamespace, tmp_path: Path
) -> None:
    file = lines(make, tmp_path, text=TEXTS, label=[1, 2, 3] * 10)
    with pytest.raises((InvalidConfig, KeyError), match=match) as caught:
        load_task(file, ColumnNames(**names), kind=kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "label", "match"),
    [
        ("regression", "high", r"row 30: .* holds 'high', which is not a number\. Give every"),
        ("regression", None, r"row 30: the label column 'label' has no label"),
        ("regression", "inf", r"row 30: .* holds 'inf', which is not a number"),
        ("regression", True, r"row 30: .* holds True, which is not a number"),
        ("multilabel", None, r"row 30: .* has no list of labels\. .*--label-separator"),
        ("multilabel", "a;b", r"row 30: .* holds 'a;b', no list"),
        ("multilabel", [0, 1, 0], r"row 30: .* names a label twice\. Name the labels that apply"),
        ("multilabel", [None], r"row 30: .* of which not all are labels"),
        ("answers", None, r"row 30: the label column 'label' has no answer"),
        ("answers", "yes\nno", r"row 30: .* holds 'yes\\nno', of several lines"),
    ],
)
def test_labels_that_are_not_of_a_kind(
    kind: str, label: Any, match: str, make: SimpleNamespace, tmp_path: Path
) -> None:
    good = {"regression": 1.5, "multilabel": ["a"], "answers": "yes"}[kind]
    file = lines(make, tmp_path, text=TEXTS, label=[*[good] * 29, label])
    names = ColumnNames(text="text", label="label")
    with pytest.raises(InvalidConfig, match=match) as caught:
        load_task(file, names, kind=kind)
    assert "\n" not in str(caught.value)


def test_labels_that_say_nothing(make: SimpleNamespace, tmp_path: Path) -> None:
    file = lines(make, tmp_path, text=TEXTS, label=[2.5] * 30)
    with pytest.raises(InvalidConfig, match=r"only one label, 2\.5\. Regression needs different"):
        load_task(file)
    file = lines(make, tmp_path, text=TEXTS, label=[["a"]] * 30)
    with pytest.raises(InvalidConfig, match=r"fewer than two labels \('a'\)"):
        load_task(file)


def test_every_kind_has_metrics_that_there_are() -> None:
    assert set(KINDS) == {*MAKERS, *ELSEWHERE}


def test_the_command_line_says_a_kind_and_a_metric(
    deltakit: Callable[..., Any], folders: dict[str, Path], bert: Path, decoder: Path
) -> None:
    options = ("--methods", "head", "--lr", "1e-2")
    task = ("--task", folders["regression"], "--model", bert)
    ended = deltakit("plan", *options, *task, "--metric", "spearman")
    assert ended.code == 0 and "regression, spearman. Plan" in ended.out
    assert "does not fit" in deltakit("plan", *options, *task, "--metric", "f1_micro").line
    assert "unknown metric 'f7'" in deltakit("plan", *options, *task, "--metric", "f7").line
    texts = ("--task", folders["classification"], "--model", decoder, "--kind", "causal")
    assert "language modelling, perplexity" in deltakit("plan", *options, *texts).out
    shipped = ("--task", "imdb", "--kind", "causal", "--model", decoder)
    assert "--kind is for data of your own" in deltakit("plan", *options, *shipped).line
