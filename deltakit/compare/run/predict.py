"""Predictions on a split, and the score they make."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from deltakit.compare.records.result import Predictions, Value
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks.kinds import Kind, references

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score with the 95 % interval that its number of test examples allows."""

    metric: str
    value: float
    low: float
    high: float
    n: int


def predict(
    model: "PreTrainedModel", data: "Dataset", kind: Kind, tokenizer: "PreTrainedTokenizerBase"
) -> Predictions:
    """What the model says of every encoded row, in the split's order.

    Rows are batched by length; padding does not change a row's result.
    """
    model.eval()
    rows = list(data)
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]["input_ids"]))
    predicted: dict[int, Value] = {}
    for first in range(0, len(order), kind.batch_size):
        chosen = order[first : first + kind.batch_size]
        with torch.inference_mode():
            judged = kind.predict(model, [rows[row] for row in chosen], tokenizer)
        predicted.update(zip(chosen, judged, strict=True))
    return Predictions(
        labels=references(data), predicted=tuple(predicted[row] for row in range(len(rows)))
    )


def collate(
    data: "Dataset", kind: Kind, tokenizer: "PreTrainedTokenizerBase", device: torch.device
) -> dict[str, Any]:
    """All encoded rows as one padded batch on `device`."""
    batch = kind.collate(list(data), tokenizer)
    return {key: value.to(device) for key, value in batch.items()}


def score(predictions: Predictions, metric: str) -> Score:
    """The score by a metric's name, with its interval.

    Raises:
        UnknownName: a metric that is not known here.
    """
    chosen = METRICS.get(metric)
    low, high = chosen.interval(predictions)
    return Score(
        metric=metric,
        value=chosen.value(predictions),
        low=low,
        high=high,
        n=len(predictions.labels),
    )
