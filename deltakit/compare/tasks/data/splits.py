"""Splits where the source has none, by a rule that does not depend on the order of the rows."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Examples:
    """The inputs and labels of examples.

    A label is a class id, a number, an answer, noughts and ones for several labels, or a tuple
    with one entry for each part of the input. Texts to model have none.

    Attributes:
        texts: the texts; empty where the kind of task reads none.
        labels: one for each example.
        pairs: the second texts of a task about pairs.
        inputs: the inputs that are not texts, by column.
    """

    texts: list[str] = field(default_factory=list)
    labels: list[Any] | None = None
    pairs: list[str] | None = None
    inputs: Mapping[str, list[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values()), self.texts))

    def text_keys(self, *, ascii: bool = True) -> list[str]:
        """The identity of an example: its text, both its texts, or all its inputs.

        Inputs that are not texts are JSON, whose letters are escaped where it is `ascii`.
        """
        if self.inputs:
            columns = [*([self.texts] if self.texts else []), *self.inputs.values()]
            rows = zip(*columns, strict=True)
            return [json.dumps(row, default=_digest, ensure_ascii=ascii) for row in rows]
        if self.pairs is None:
            return self.texts
        return [f"{text}\x1f{pair}" for text, pair in zip(self.texts, self.pairs, strict=True)]

    def pick(self, rows: Iterable[int]) -> "Examples":
        """The examples at `rows`, in that order."""
        rows = list(rows)
        return Examples(
            texts=[self.texts[row] for row in rows] if self.texts else [],
            labels=None if self.labels is None else [self.labels[row] for row in rows],
            pairs=None if self.pairs is None else [self.pairs[row] for row in rows],
            inputs={name: [each[row] for row in rows] for name, each in self.inputs.items()},
        )

    def dataset(self) -> "Dataset":
        """The examples as a data set in memory, with the columns that `TaskData` promises."""
        from datasets import Dataset, Features

        columns: dict[str, list[Any] | None] = {
            "text": self.texts or (None if self.inputs else []),
            "label": self.labels,
            "text_pair": self.pairs,
            **self.inputs,
        }
        present = {name: values for name, values in columns.items() if values is not None}
        types = {name: _feature(values, name) for name, values in present.items()}
        return Dataset.from_dict(present, features=Features(types))


def _digest(content: bytes) -> str:
    """The bytes of a picture in short."""
    return hashlib.sha256(content).hexdigest()


def _feature(values: Sequence[Any], name: str) -> Any:
    """The type of a column, from its first value that is not an empty list."""
    from datasets import List, Value

    usual = 0 if name == "label" else ""
    first = next((value for value in values if value not in ((), [])), usual)
    if isinstance(first, tuple | list):
        return List(_feature(first, name))
    return Value({float: "float64", str: "string", bytes: "binary"}.get(type(first), "int64"))


class Splits(NamedTuple):
    """One source, cut in three."""

    train: Examples
    validation: Examples
    test: Examples

    def with_texts(self, change: Callable[[str], str]) -> "Splits":
        """The same examples with other texts."""
        return Splits(*(replace(part, texts=list(map(change, part.texts))) for part in self))


def distinct(examples: Examples) -> Examples:
    """Each text once, ordered by the SHA-256 of the text; the order of the rows never matters.

    A text with several labels gets the one that `agreed` gives, or is left out.
    """
    rows = rows_by_text(examples)
    order = sorted(rows, key=lambda key: hashlib.sha256(key.encode()).digest())
    if examples.labels is None:
        return examples.pick(rows[key][0] for key in order)
    labels = {key: agreed([examples.labels[row] for row in rows[key]]) for key in order}
    kept = [key for key in order if labels[key] is not None]
    return replace(
        examples.pick(rows[key][0] for key in kept), labels=[labels[key] for key in kept]
    )


def rows_by_text(examples: Examples) -> dict[str, list[int]]:
    """The rows of each text, in order of appearance."""
    rows: dict[str, list[int]] = {}
    for row, key in enumerate(examples.text_keys()):
        rows.setdefault(key, []).append(row)
    return rows


def agreed(labels: Sequence[Any]) -> Any:
    """The label of a text that occurs with `labels`.

    It is the mean of numbers, and otherwise the label of more than half of the rows; None where
    there is none.
    """
    if isinstance(labels[0], float):
        return math.fsum(sorted(labels)) / len(labels)
    ((label, most),) = Counter(labels).most_common(1)
    return label if 2 * most > len(labels) else None


def disputed(examples: Examples) -> list[list[int]]:
    """The rows of each text that occurs with different labels, in order of appearance."""
    if examples.labels is None:
        return []
    labels = examples.labels
    return [
        rows for rows in rows_by_text(examples).values() if len({labels[row] for row in rows}) > 1
    ]


def carve(examples: Examples, *, test: int, validation: int) -> Splits:
    """Cuts a source in three: in the order of `distinct`, test first, then validation, then train.

    A text that occurs twice can therefore not lie in two splits, and a shuffled source gives the
    same splits.

    Args:
        examples: the whole source.
        test: number of test examples.
        validation: number of validation examples.
    """
    once = distinct(examples)
    start = test + validation
    return Splits(
        train=once.pick(range(start, len(once))),
        validation=once.pick(range(test, min(start, len(once)))),
        test=once.pick(range(min(test, len(once)))),
    )
