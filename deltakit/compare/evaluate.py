"""Predictions on a test split, and the score they make."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from deltakit.compare.schema import Predictions
from deltakit.compare.stats import proportion_interval
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVAL_BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score with the 95 % interval that its number of test examples allows."""

    metric: str
    value: float
    low: float
    high: float
    n: int


def predict(
    model: "PreTrainedModel", data: "Dataset", tokenizer: "PreTrainedTokenizerBase"
) -> Predictions:
    """The most likely class of every row, in the split's order.

    Rows are batched by length; padding does not change a row's result.
    """
    model.eval()
    order = sorted(range(len(data)), key=lambda row: len(data[row]["input_ids"]))
    predicted = [0] * len(data)
    for first in range(0, len(order), EVAL_BATCH_SIZE):
        rows = order[first : first + EVAL_BATCH_SIZE]
        batch = collate(data.select(rows), tokenizer, model.device)
        del batch["labels"]
        with torch.inference_mode():
            classes = model(**batch).logits.argmax(-1).tolist()
        for row, label in zip(rows, classes, strict=True):
            predicted[row] = label
    return Predictions(labels=tuple(data["labels"]), predicted=tuple(predicted))


def collate(
    data: "Dataset", tokenizer: "PreTrainedTokenizerBase", device: torch.device
) -> dict[str, Any]:
    """All rows as one padded batch on `device`."""
    from transformers import DataCollatorWithPadding

    batch = DataCollatorWithPadding(tokenizer)([data[row] for row in range(len(data))])
    return {key: value.to(device) for key, value in batch.items()}


def constant(train: "Dataset", test: "Dataset") -> Predictions:
    """The most frequent class of the training split, for every row of the test split."""
    from sklearn.dummy import DummyClassifier

    labels = list(train["label"])
    dummy = DummyClassifier(strategy="most_frequent").fit([[0]] * len(labels), labels)
    predicted = dummy.predict([[0]] * len(test))
    return Predictions(
        labels=tuple(test["label"]), predicted=tuple(int(label) for label in predicted)
    )


def score(predictions: Predictions, metric: str) -> Score:
    """The metric by its name in scikit-learn, with its interval.

    Raises:
        InvalidConfig: a metric that is not known here.
    """
    from sklearn.metrics import accuracy_score

    if metric != "accuracy":
        raise InvalidConfig(f"metric {metric!r} is not known. Known: accuracy.")
    n = len(predictions.labels)
    correct = int(accuracy_score(predictions.labels, predictions.predicted, normalize=False))
    low, high = proportion_interval(correct, n)
    return Score(metric=metric, value=correct / n, low=low, high=high, n=n)
