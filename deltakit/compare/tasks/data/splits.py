"""Splits where the source has none, by a rule that does not depend on the order of the rows."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Texts with labels; `pairs` holds the second texts of a task about pairs.

    A label is a class id, a number, an answer, or noughts and ones for several labels. Texts to
    model have none.
    """

    texts: list[str]
    labels: list[Any] | None = None
    pairs: list[str] | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def text_keys(self) -> list[str]:
        """The identity of an example: its text, or both its texts."""
        if self.pairs is None:
            return self.texts
        return [f"{text}\x1f{pair}" for text, pair in zip(self.texts, self.pairs, strict=True)]

    def pick(self, rows: Iterable[int]) -> "Examples":
        """The examples at `rows`, in that order."""
        rows = list(rows)
        return Examples(
            texts=[self.texts[row] for row in rows],
            labels=None if self.labels is None else [self.labels[row] for row in rows],
            pairs=None if self.pairs is None else [self.pairs[row] for row in rows],
        )

    def dataset(self) -> "Dataset":
        """The examples as a data set in memory, with the columns that `TaskData` promises."""
        from datasets import Dataset, Features, List, Value

        columns: dict[str, list[Any]] = {"text": self.texts}
        types: dict[str, Any] = {"text": Value("string")}
        if self.labels is not None:
            of = {float: Value("float64"), str: Value("string"), tuple: List(Value("int64"))}
            columns["label"] = self.labels
            types["label"] = of.get(type(next(iter(self.labels), 0)), Value("int64"))
        if self.pairs is not None:
            columns["text_pair"] = self.pairs
            types["text_pair"] = Value("string")
        return Dataset.from_dict(columns, features=Features(types))


class Splits(NamedTuple):
    """One source, cut in three."""

    train: Examples
    validation: Examples
    test: Examples

    def with_texts(self, change: Callable[[str], str]) -> "Splits":
        """The same examples with other texts."""
        return Splits(*(replace(part, texts=list(map(change, part.texts))) for part in self))


def distinct(examples: Examples) -> Examples:
    """Each text once, ordered by the SHA-256 of the text.

    A text with several labels keeps the smallest, so that the order of the rows never matters.
    """
    keys = examples.text_keys()
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]
    labels = examples.labels or [0] * len(keys)
    order = sorted(range(len(keys)), key=lambda row: (digests[row], labels[row]))
    first = [r for i, r in enumerate(order) if i == 0 or digests[r] != digests[order[i - 1]]]
    return examples.pick(first)


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
