"""Predictions that do not depend on who else is in the batch, and their score."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from deltakit.compare.records.result import Predictions
from deltakit.compare.run.predict import collate, predict, score
from deltakit.compare.tasks import load_task
from deltakit.errors import UnknownName
from deltakit.models.source import BaseChoice, find_model

FP32 = BaseChoice(name="fp32")


@pytest.fixture(params=["bert", "llama"])
def ready(request: pytest.FixtureRequest, tasks: SimpleNamespace) -> SimpleNamespace:
    """A model with a random head, its tokenizer and an encoded test split of many lengths."""
    source = find_model(str(request.getfixturevalue(request.param)))
    tokenizer = source.tokenizer()
    torch.manual_seed(0)
    task = load_task(str(tasks.six))
    model = source.load(FP32, task.kind.head, tokenizer.pad_token_id).model
    data = task.kind.encode(task.test, tokenizer, 24)
    return SimpleNamespace(model=model, kind=task.kind, tokenizer=tokenizer, data=data)


def test_predictions_are_in_the_order_of_the_split(ready: SimpleNamespace) -> None:
    predictions = predict(ready.model, ready.data, ready.kind, ready.tokenizer)
    assert predictions.labels == tuple(ready.data["labels"])
    assert len(set(predictions.predicted)) > 1
    alone = [
        predict(ready.model, ready.data.select([row]), ready.kind, ready.tokenizer).predicted[0]
        for row in range(len(ready.data))
    ]
    assert predictions.predicted == tuple(alone)  # without any padding


@pytest.mark.parametrize("size", [5, 64])
def test_rows_in_another_order_get_the_same_predictions(
    size: int, ready: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictions = predict(ready.model, ready.data, ready.kind, ready.tokenizer)
    monkeypatch.setattr(type(ready.kind), "batch_size", size)
    order = torch.randperm(len(ready.data)).tolist()
    shuffled = predict(ready.model, ready.data.select(order), ready.kind, ready.tokenizer)
    assert shuffled.predicted == tuple(predictions.predicted[row] for row in order)


def test_predicting_turns_dropout_off_and_leaves_no_gradients(ready: SimpleNamespace) -> None:
    ready.model.train()
    first = predict(ready.model, ready.data, ready.kind, ready.tokenizer)
    assert not ready.model.training
    assert predict(ready.model, ready.data, ready.kind, ready.tokenizer) == first
    assert all(parameter.grad is None for parameter in ready.model.parameters())


def test_a_batch_is_padded_to_its_longest_row(ready: SimpleNamespace) -> None:
    batch = collate(ready.data, ready.kind, ready.tokenizer, torch.device("cpu"))
    lengths = [len(row) for row in ready.data["input_ids"]]
    assert batch["input_ids"].shape == (len(lengths), max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["labels"].tolist() == list(ready.data["labels"])


def test_the_constant_row_is_the_most_frequent_class_of_train(
    bert: Path, make: SimpleNamespace, tmp_path: Path
) -> None:
    folder = make.task(tmp_path / "skewed", ("neg", "pos"))
    rows = make.examples(("neg", "pos"), 20, seed=0)
    make.rows(folder / "train.csv", [*rows, *(row for row in rows if row["label"] == "pos")])
    data = load_task(str(folder))
    tokenizer = find_model(str(bert)).tokenizer()
    train, test = (data.kind.encode(split, tokenizer, 24) for split in (data.train, data.test))
    assert set(data.kind.majority_prediction(train, test, tokenizer).values) == {
        data.labels.index("pos")
    }


def test_a_score_has_wilsons_interval() -> None:
    found = score(Predictions(labels=(1,) * 10, predicted=(1,) * 8 + (0,) * 2), "accuracy")
    assert (found.metric, found.value, found.n) == ("accuracy", 0.8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_a_perfect_score_is_still_uncertain() -> None:
    found = score(Predictions(labels=(0, 1), predicted=(0, 1)), "accuracy")
    assert found.value == found.high == 1
    assert found.low < 0.5


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(UnknownName, match=r"unknown metric 'f2'.*accuracy"):
        score(Predictions(labels=(0,), predicted=(0,)), "f2")
