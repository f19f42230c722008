"""Predictions on a split, and the score they make."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from deltakit.compare.records.result import Predictions, Scores, Value
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks.kinds import Kind, Outputs, references
from deltakit.errors import InvalidConfig
from deltakit.models.processor import Processor

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Score:
    """A score with the 95 % interval that its number of test examples allows."""

    metric: str
    value: float
    low: float
    high: float
    n: int


def predict(
    model: "PreTrainedModel", data: "Dataset", kind: Kind, processor: Processor
) -> Predictions:
    """The model's predictions for every encoded row, in the split's order.

    Rows are batched by length; padding does not change a row's result.
    """
    model.eval()
    rows = list(data)
    order = sorted(range(len(rows)), key=lambda row: kind.size(rows[row]))
    values: dict[int, Value] = {}
    scores: dict[int, Any] = {}
    for first in range(0, len(order), kind.batch_size):
        chosen = order[first : first + kind.batch_size]
        with torch.inference_mode():
            outputs = kind.predict(model, [rows[row] for row in chosen], processor)
        values.update(zip(chosen, outputs.values, strict=True))
        if outputs.scores is not None:
            scores.update(zip(chosen, outputs.scores, strict=True))
    whole = Outputs(_in_order(values), _in_order(scores) if scores else None)
    return predictions_of(kind, data, whole)


def _in_order(by_row: Mapping[int, T]) -> list[T]:
    return [by_row[row] for row in sorted(by_row)]


def predictions_of(kind: Kind, data: "Dataset", outputs: Outputs) -> Predictions:
    """The outputs for all rows of an encoded split, with what is right."""
    return Predictions(
        labels=references(data),
        predicted=tuple(outputs.values),
        scores=None if outputs.scores is None else Scores(outputs.scores),
        classes=kind.labels,
    )


def collate(
    data: "Dataset", kind: Kind, processor: Processor, device: torch.device
) -> dict[str, Any]:
    """All encoded rows as one padded batch on `device`."""
    batch = kind.collate(list(data), processor)
    return {key: value.to(device) for key, value in batch.items()}


def score(predictions: Predictions, metric: str) -> Score:
    """The score by a metric's name, with its interval.

    Raises:
        UnknownName: a metric that is not known here.
        InvalidConfig: the score is not a finite number.
    """
    chosen = METRICS.get(metric)
    value = chosen.value(predictions)
    if not math.isfinite(value):
        raise InvalidConfig(
            f"the {chosen.title} of these predictions is {value}: the model's outputs are not "
            "finite. Try a lower --lr."
        )
    low, high = chosen.interval(predictions)
    return Score(
        metric=metric,
        value=value,
        low=low,
        high=high,
        n=len(predictions.labels),
    )
