"""Classification: which of several classes is a text, or a pair of texts, of?"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import (
    ColumnNames,
    RawSplit,
    is_number,
    no_label,
    short_list,
    short_repr,
)
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.kinds.base import ParsedLabels, register_kind
from deltakit.compare.tasks.kinds.sequence import PROBABILISTIC, SequenceKind
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head, SequenceHead

if TYPE_CHECKING:
    from torch import Tensor

_WHOLE = re.compile(r"-?\d+")
_DIGITS = 1000
"""Longer numbers are names: Python reads no number of 4,300 digits."""


@register_kind("classification")
@dataclass(frozen=True, kw_only=True)
class Classification(SequenceKind):
    """One class for each example. `classes` are their names; the index is the class id."""

    precedence: ClassVar[int] = -4  # every training split matches
    classes: tuple[str, ...]

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        return True

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        names = {split: _names(rows) for split, rows in splits.items()}
        if classes is None or len(classes) < 2:
            classes = _classes(splits["train"].where, names["train"])
        return ParsedLabels(
            cls(classes=classes),
            {split: _examples(rows, names[split], classes) for split, rows in splits.items()},
            (*notes_on_joined(classes), *notes_on_alike(classes)),
        )

    @property
    def description(self) -> str:
        return f"{len(self.classes)} classes"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classes

    def missing_classes(self, before: Iterable[Value], after: Iterable[Value]) -> tuple[str, ...]:
        gone = set(before) - set(after)
        return tuple(name for index, name in enumerate(self.classes) if index in gone)

    @property
    def head(self) -> Head:
        return SequenceHead(outputs=len(self.classes))

    @property
    def metrics(self) -> tuple[str, ...]:
        two = ("f1",) if len(self.classes) == 2 else ()
        first = (f"top{k}_accuracy" for k in (3, 5) if len(self.classes) > k)
        return ("accuracy", *two, "f1_macro", "matthews", *PROBABILISTIC, *first)

    def target(self, label: Any) -> Any:
        return label

    def decode(self, logits: "Tensor") -> list[Value]:
        return list(logits.argmax(-1).tolist())

    def probabilities(self, logits: "Tensor") -> "Tensor":
        return logits.softmax(-1)

    def label_frequencies(self, counted: Mapping[Value, int]) -> Sequence[float]:
        total = sum(counted.values())
        return [counted.get(index, 0) / total for index in range(len(self.classes))]


def class_name(label: Any) -> str:
    """A label as its class is called: ``1``, ``"1"`` and ``1.0`` are one class."""
    text = str(label).strip()
    return re.sub(r"\.0+$", "", text) if re.fullmatch(r"-?\d+\.0+", text) else text


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """The different names: whole numbers by value, others by alphabet."""
    found = set(names)
    if all(_WHOLE.fullmatch(name) and len(name) <= _DIGITS for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))  # 1 and 01 are two
    return tuple(sorted(found))


def notes_on_joined(classes: Sequence[str]) -> tuple[str, ...]:
    """A note where classes look like several others that are joined by a separator."""
    for separator in ",;|":
        joined = [name for name in classes if _is_joined(name, separator, classes)]
        if joined:
            return (
                f"{len(joined):,} of {len(classes):,} labels are others joined by {separator!r}, "
                f"such as {short_repr(joined[0])}. If a text can have several labels, give "
                f"--label-separator {separator!r}.",
            )
    return ()


def notes_on_alike(classes: Sequence[str]) -> tuple[str, ...]:
    """A note where the names of several classes differ in case, spaces or spelling of one value."""
    alike: dict[object, list[str]] = {}
    for name in classes:
        alike.setdefault(_value(name), []).append(name)
    groups = [names for names in alike.values() if len(names) > 1]
    if not groups:
        return ()
    return (
        f"labels that look alike are classes of their own: {', '.join(map(_short, groups[0]))}. "
        "Correct the file if they are one.",
    )


def _value(name: str) -> object:
    """The value that a name may be another spelling of."""
    text = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    text = {"true": "1", "false": "0"}.get(text, text)
    return Decimal(text) if is_number(text) else text


def _short(name: str) -> str:
    """A name in ASCII, which tells letters of the same look apart."""
    return short_repr(name) if name.isascii() else ascii(name)


def _is_joined(name: str, separator: str, classes: Sequence[str]) -> bool:
    parts = [part.strip() for part in name.split(separator)]
    return len(parts) > 1 and all(part in classes for part in parts)


def _names(rows: RawSplit) -> list[str]:
    for row, value in enumerate(rows.labels, start=1):
        problem = _problem(value)
        if problem is not None:
            raise rows.wrong(row, problem, "Give every example a whole number or a name")
    return [class_name(value) for value in rows.labels]


def _problem(value: Any) -> str | None:
    """What keeps `value` from naming a class, or None."""
    if no_label(value):
        return "has no label"
    infinite = isinstance(value, float) and math.isinf(value)
    if infinite or not isinstance(value, str | int | float):
        return f"holds {short_repr(value)}, which does not name a class"
    return None


def _classes(where: str, names: list[str]) -> tuple[str, ...]:
    classes = in_order(names)
    if len(classes) < 2:
        raise InvalidConfig(
            f"{where} has only one class, {short_repr(classes[0])}. "
            "Classification needs two or more; "
            "check --label-column."
        )
    return classes


def _examples(rows: RawSplit, names: list[str], classes: tuple[str, ...]) -> Examples:
    ids = {name: index for index, name in enumerate(classes)}
    for row, name in enumerate(names, start=1):
        if name not in ids:
            raise InvalidConfig(
                f"{rows.where}, row {row}: label {short_repr(name)} does not occur in train, whose "
                f"classes are {short_list(classes)}. Correct it, or add examples of it to train."
            )
    return Examples(texts=rows.texts, labels=[ids[name] for name in names], pairs=rows.pairs)
