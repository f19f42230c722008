"""Regression: which number belongs to a text, or to a pair of texts?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import (
    ColumnNames,
    RawSplit,
    finite,
    is_number,
    no_label,
    short_repr,
)
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.kinds.base import Outputs, ParsedLabels, references, register_kind
from deltakit.compare.tasks.kinds.sequence import SequenceKind
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head, SequenceHead

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase


@register_kind("regression")
@dataclass(frozen=True, kw_only=True)
class Regression(SequenceKind):
    """One number for each example.

    Training aims at numbers of mean 0 and deviation 1, so that one learning rate is as good for
    stars as for prices; predictions and scores are in the task's own unit.

    Attributes:
        mean: of the labels of train.
        deviation: their standard deviation.
    """

    precedence: ClassVar[int] = -3
    mean: float
    deviation: float

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        values = columns.get(asked.label or "label", [])
        numbers = [_number(value) for value in values if not no_label(value)]
        return None not in numbers and any(number and number % 1 for number in numbers)

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        del classes
        read = {
            split: Examples(texts=rows.texts, labels=_numbers(rows), pairs=rows.pairs)
            for split, rows in splits.items()
        }
        train = read["train"].labels or []
        mean = math.fsum(train) / len(train)
        deviation = math.sqrt(math.fsum((label - mean) ** 2 for label in train) / len(train))
        if deviation == 0:
            raise InvalidConfig(
                f"{splits['train'].where} has only one label, {train[0]:g}. Regression needs "
                "different ones; check --label-column."
            )
        note = (
            f"the labels are numbers, {min(train):g} to {max(train):g} in train: this is regression"
        )
        return ParsedLabels(cls(mean=mean, deviation=deviation), read, (f"{note}.",))

    @property
    def description(self) -> str:
        return "regression"

    @property
    def identity(self) -> tuple[str, ...]:
        return (repr(self.mean), repr(self.deviation))

    @property
    def head(self) -> Head:
        return SequenceHead(outputs=1, problem="regression")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("pearson", "spearman", "r2", "mse")

    def target(self, label: Any) -> Any:
        return (label - self.mean) / self.deviation

    def decode(self, logits: "Tensor") -> list[Value]:
        return [self.mean + self.deviation * number for number in logits[:, 0].tolist()]

    def majority_prediction(
        self, train: "Dataset", test: "Dataset", tokenizer: "PreTrainedTokenizerBase"
    ) -> Outputs:
        """The mean of train."""
        del tokenizer
        labels = [float(label) for label in references(train) if not isinstance(label, str | tuple)]
        return Outputs([math.fsum(labels) / len(labels)] * len(test))


def _numbers(rows: RawSplit) -> list[float]:
    numbers = []
    for row, value in enumerate(rows.labels, start=1):
        number = _number(value)
        if number is None:
            problem = (
                "has no label"
                if no_label(value)
                else f"holds {short_repr(value)}, which is not a number"
            )
            raise rows.wrong(row, problem, "Give every example a number")
        numbers.append(number)
    return numbers


def _number(value: Any) -> float | None:
    """The finite number that a cell holds, as one or in words."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and not is_number(value):
        return None
    return finite(value)
