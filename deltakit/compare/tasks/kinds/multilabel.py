"""Multi-label classification: which of several labels, any number of them, does a text have?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import (
    ColumnNames,
    RawSplit,
    no_label,
    short_list,
    short_repr,
)
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.kinds.base import ParsedLabels, register_kind
from deltakit.compare.tasks.kinds.classification import (
    class_name,
    in_order,
    notes_on_alike,
    notes_on_joined,
)
from deltakit.compare.tasks.kinds.sequence import PROBABILISTIC, SequenceKind
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head, SequenceHead

if TYPE_CHECKING:
    from torch import Tensor


@register_kind("multilabel")
@dataclass(frozen=True, kw_only=True)
class MultiLabel(SequenceKind):
    """Any number of labels for each example: a zero or a one for each of `names`."""

    precedence: ClassVar[int] = -2
    options: ClassVar[frozenset[str]] = SequenceKind.options | {"--label-separator"}
    names: tuple[str, ...]

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        values = columns.get(asked.label or "label", [])
        return asked.separator is not None or any(isinstance(value, list) for value in values)

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        sets = {split: _sets(rows) for split, rows in splits.items()}
        names = classes or in_order(name for each in sets["train"] for name in each)
        if len(names) < 2:
            raise InvalidConfig(
                f"{splits['train'].where} has fewer than two labels "
                f"({short_list(names) or 'none'}). "
                "Give several, or choose another column with --label-column."
            )
        if len({tuple(sorted(each)) for each in sets["train"]}) == 1:
            raise InvalidConfig(
                f"{splits['train'].where}: every example has the same labels, "
                f"{short_list(sorted(sets['train'][0]))}. Name the labels that apply to each, not "
                "a 0 or a 1 for every label, or choose another column with --label-column."
            )
        read = {
            split: Examples(
                texts=rows.texts, labels=_flags(rows, sets[split], names), pairs=rows.pairs
            )
            for split, rows in splits.items()
        }
        return ParsedLabels(
            cls(names=names), read, (*notes_on_joined(names), *notes_on_alike(names))
        )

    @property
    def description(self) -> str:
        return f"{len(self.names)} labels, any number of them for a text"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.names

    @property
    def head(self) -> Head:
        return SequenceHead(outputs=len(self.names), problem="multi_label_classification")

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("f1_micro", "f1_macro", "exact_match", *PROBABILISTIC)

    def target(self, label: Any) -> Any:
        return [float(flag) for flag in label]

    def decode(self, logits: "Tensor") -> list[Value]:
        return [tuple(map(int, row)) for row in (logits > 0).tolist()]

    def probabilities(self, logits: "Tensor") -> "Tensor":
        return logits.sigmoid()

    def label_frequencies(self, counted: Mapping[Value, int]) -> Sequence[float]:
        total = sum(counted.values())
        sets = [(flags, count) for flags, count in counted.items() if isinstance(flags, tuple)]
        return [
            sum(int(flags[index]) * count for flags, count in sets) / total
            for index in range(len(self.names))
        ]


def _sets(rows: RawSplit) -> list[list[str]]:
    return [_set(rows, row, value) for row, value in enumerate(rows.labels, start=1)]


def _set(rows: RawSplit, row: int, value: Any) -> list[str]:
    remedy = (
        "Give every example a list of labels, which may be empty, or say with --label-separator "
        "what separates them"
    )
    if not isinstance(value, list):
        problem = (
            "has no list of labels" if no_label(value) else f"holds {short_repr(value)}, no list"
        )
        raise rows.wrong(row, problem, remedy)
    if not all(isinstance(each, str | int) and not no_label(each) for each in value):
        raise rows.wrong(row, f"holds {short_repr(value)}, of which not all are labels", remedy)
    names = [class_name(each) for each in value]
    if len(set(names)) < len(names):
        raise rows.wrong(
            row,
            f"holds {short_repr(value)}, which names a label twice",
            "Name the labels that apply, once each, not a 0 or a 1 for every label",
        )
    return names


def _flags(rows: RawSplit, sets: list[list[str]], names: tuple[str, ...]) -> list[tuple[int, ...]]:
    for row, each in enumerate(sets, start=1):
        unknown = sorted(set(each) - set(names))
        if unknown:
            raise InvalidConfig(
                f"{rows.where}, row {row}: label {short_repr(unknown[0])} does not occur in "
                "train, whose "
                f"labels are {short_list(names)}. Correct it, or add examples of it to train."
            )
    return [tuple(int(name in each) for name in names) for each in sets]
