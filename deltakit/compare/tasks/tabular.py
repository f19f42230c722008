"""People's own columns, checked: texts that are texts, labels that are classes, three splits."""

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltakit.compare.tasks.base import TaskData
from deltakit.compare.tasks.splits import Examples, carve, distinct
from deltakit.compare.tasks.tables import Columns
from deltakit.errors import InvalidConfig

VALIDATION_SHARE = 0.1
"""Of train, where there is no validation split."""
TEST_SHARE = 0.2
"""Of train, where there is no test split."""

_WHOLE = re.compile(r"-?\d+")
_LONGEST_SHOWN = 60
_MOST_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """Which columns hold what. `pair` is the second text of a task about pairs."""

    text: str = "text"
    pair: str | None = None
    label: str = "label"


@dataclass(frozen=True, kw_only=True)
class Source:
    """One split as it was read. `where` names it in messages."""

    where: str
    columns: Columns

    def column(self, name: str, option: str) -> list[Any]:
        """The values of a column. `option` is the flag that names another one.

        Raises:
            InvalidConfig: there is no such column, or no row.
        """
        if not self.columns or not all(self.columns.values()):
            raise InvalidConfig(f"{self.where} has no rows. Give it at least one example.")
        if name in self.columns:
            return self.columns[name]
        near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InvalidConfig(
            f"{self.where} has no column {name!r}.{hint} It has: "
            f"{listed(self.columns)}. Choose one with {option}."
        )


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """One split with its columns checked; labels are still names."""

    where: str
    texts: list[str]
    labels: list[str]
    pairs: list[str] | None = None

    def examples(self, classes: Sequence[str]) -> Examples:
        """The split with class ids.

        Raises:
            InvalidConfig: a label that is not among `classes`.
        """
        ids = {name: index for index, name in enumerate(classes)}
        for row, label in enumerate(self.labels, start=1):
            if label not in ids:
                raise InvalidConfig(
                    f"{self.where}, row {row}: label {show(label)} does not occur in train, whose "
                    f"classes are {listed(classes)}. Correct it, or add examples of it to train."
                )
        return Examples(
            texts=self.texts, labels=[ids[label] for label in self.labels], pairs=self.pairs
        )


def check(source: Source, names: ColumnNames) -> Labelled:
    """The columns called `names` of one split.

    Raises:
        InvalidConfig: a column, a text or a label is missing or is not what its place takes.
    """
    texts = _texts(source, names.text, "--text-column")
    pairs = None if names.pair is None else _texts(source, names.pair, "--pair-column")
    labels = _labels(source, names.label)
    return Labelled(where=source.where, texts=texts, labels=labels, pairs=pairs)


def _texts(source: Source, name: str, option: str) -> list[str]:
    values = source.column(name, option)
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            problem = "has no text (null)" if is_null(value) else f"holds {show(value)}, not a text"
            raise InvalidConfig(
                f"{source.where}, row {row}: the text column {name!r} {problem}. Correct the row, "
                f"or choose a column of texts with {option}; the columns are "
                f"{listed(source.columns)}."
            )
    # A blank text among others is real data (a note counts them), a column of blanks is not.
    filled = [value for value in values if value.strip()]
    if all(_is_number(value) for value in filled):
        problem = f"only numbers, the first is {show(filled[0])}" if filled else "only blanks"
        raise InvalidConfig(
            f"{source.where}: the text column {name!r} holds {problem}. Choose a column of texts "
            f"with {option}; the columns are {listed(source.columns)}."
        )
    return values


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _labels(source: Source, name: str) -> list[str]:
    values = source.column(name, "--label-column")
    for row, value in enumerate(values, start=1):
        problem = _label_problem(value)
        if problem is not None:
            raise InvalidConfig(
                f"{source.where}, row {row}: the label column {name!r} {problem}. Give every "
                "example a whole number or a name, or choose another column with --label-column; "
                f"the columns are {listed(source.columns)}."
            )
    labels = [_label(value) for value in values]
    _check_not_scores(source, name, labels)
    return labels


def _label_problem(value: Any) -> str | None:
    """What keeps `value` from naming a class, or None."""
    if no_label(value):
        return "has no label"
    if not isinstance(value, str | int | float):
        return f"holds {show(value)}, which does not name a class"
    return None


def _label(value: Any) -> str:
    """A label as its class is called: ``1``, ``"1"`` and ``1.0`` are one class."""
    text = str(value).strip()
    return re.sub(r"\.0+$", "", text) if re.fullmatch(r"-?\d+\.0+", text) else text


def _check_not_scores(source: Source, name: str, labels: list[str]) -> None:
    """Raises `InvalidConfig` if all labels are numbers and one is a fraction."""
    fractions = (label for label in labels if not _WHOLE.fullmatch(label))
    fraction = next(fractions, None)
    if fraction is not None and all(_is_number(label) for label in set(labels)):
        raise InvalidConfig(
            f"{source.where}: the label column {name!r} holds {show(fraction)}, which is not a "
            "class. Labels are whole numbers or names; bin the scores, or choose another column "
            f"with --label-column; the columns are {listed(source.columns)}."
        )


def is_null(value: Any) -> bool:
    """Whether a cell holds nothing: None, or the not-a-number that data frames write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def no_label(value: Any) -> bool:
    """Whether a label is missing: null or blank."""
    return is_null(value) or (isinstance(value, str) and not value.strip())


def classes_of(train: Labelled) -> tuple[str, ...]:
    """The classes that occur in train: whole numbers by value, names by alphabet.

    Raises:
        InvalidConfig: there is only one.
    """
    found = set(train.labels)
    if len(found) < 2:
        raise InvalidConfig(
            f"{train.where} has only one class, {show(train.labels[0])}. Classification needs two "
            "or more; check --label-column."
        )
    if all(_WHOLE.fullmatch(label) for label in found):
        return tuple(sorted(found, key=int))
    return tuple(sorted(found))


def assemble(
    name: str,
    splits: Mapping[str, Labelled],
    *,
    classes: tuple[str, ...] | None = None,
    notes: Iterable[str] = (),
) -> TaskData:
    """A task out of checked splits; what is missing of validation and test is cut from train.

    Args:
        name: the task's name.
        splits: "train" and, where the source has them, "validation" and "test".
        classes: the class names, where the source fixes them; those of train otherwise.
        notes: what the source has to say about the splits.

    Raises:
        InvalidConfig: labels that do not fit, or too few examples to cut train.
    """
    if classes is None or len(classes) < 2:
        classes = classes_of(splits["train"])
    given = {split: labelled.examples(classes) for split, labelled in splits.items()}
    whole, said = _completed(splits["train"].where, given, classes)
    return TaskData(
        name=name,
        labels=classes,
        **{split: examples.dataset() for split, examples in whole.items()},
        notes=(*notes, *said, *_blanks(whole), *_overlaps(whole)),
    )


def _completed(
    where: str, given: Mapping[str, Examples], classes: Sequence[str]
) -> tuple[dict[str, Examples], list[str]]:
    """All three splits, and what to say about those that were cut from train."""
    shares = {"validation": VALIDATION_SHARE, "test": TEST_SHARE}
    missing = [split for split in shares if split not in given]
    if not missing:
        return dict(given), []
    once = distinct(given["train"])
    sizes = {
        split: max(1, round(shares[split] * len(once))) if split in missing else 0
        for split in shares
    }
    cut = carve(once, **sizes)
    _check_classes_left(where, given["train"], cut.train, classes)
    notes = [
        f"{split}: cut from train, {shares[split]:.0%} of it ({sizes[split]:,} examples), in the "
        "order of the texts' SHA-256."
        for split in missing
    ]
    repeated = len(given["train"]) - len(once)
    if repeated:
        notes.append(f"train: {repeated:,} repeated texts were dropped before it was cut.")
    return {**cut._asdict(), **{s: e for s, e in given.items() if s != "train"}}, notes


def _check_classes_left(
    where: str, before: Examples, after: Examples, classes: Sequence[str]
) -> None:
    for label in sorted(set(before.labels) - set(after.labels)):
        raise InvalidConfig(
            f"{where} has too few examples of class {show(classes[label])}: none is left after "
            "validation and test examples are cut from it. Add examples, or give the missing "
            "splits as files of their own."
        )


def _blanks(splits: Mapping[str, Examples]) -> list[str]:
    """A note for every split with blank texts."""
    counts = {split: sum(not t.strip() for t in splits[split].texts) for split in sorted(splits)}
    return [
        f"{split}: {count:,} of {len(splits[split]):,} texts are blank; they are kept."
        for split, count in counts.items()
        if count
    ]


def _overlaps(splits: Mapping[str, Examples]) -> list[str]:
    """A note for every evaluation split that shares texts with train."""
    seen = set(splits["train"].text_keys())
    notes = []
    for split in ("validation", "test"):
        shared = sum(key in seen for key in splits[split].text_keys())
        if shared:
            notes.append(
                f"{split}: {shared:,} of {len(splits[split]):,} examples have a text that is in "
                "train too."
            )
    return notes


def show(value: Any) -> str:
    """A value in one short line."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def listed(names: Iterable[str]) -> str:
    """Names in one line, the first few if there are many."""
    shown = [show(name) for name in names]
    if len(shown) <= _MOST_SHOWN:
        return ", ".join(shown)
    return f"{', '.join(shown[:_MOST_SHOWN])} and {len(shown) - _MOST_SHOWN} more"
