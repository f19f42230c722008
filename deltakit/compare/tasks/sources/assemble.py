"""People's own columns, checked: texts that are texts, labels of one kind, three splits."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from deltakit.compare.tasks.data.columns import (
    ColumnNames,
    RawSplit,
    RawTable,
    short_list,
    short_repr,
)
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples, carve, disputed, distinct, rows_by_text
from deltakit.compare.tasks.kinds import KINDS, Kind
from deltakit.compare.tasks.task import TaskData
from deltakit.errors import InvalidConfig

VALIDATION_SHARE = 0.1
"""Of train, where there is no validation split."""
TEST_SHARE = 0.2
"""Of train, where there is no test split."""
_MOST_ROWS = 5


def select_columns(source: RawTable, names: ColumnNames, kind: type[Kind]) -> RawSplit:
    """The columns of one split that a kind of task reads.

    Raises:
        InvalidConfig: a column or an input is missing or is not what its place takes.
    """
    source = kind.prepared(source, names)
    text, column = kind.columns_in(source.columns, names)
    texts = [] if text is None else _texts(source, text, names)
    pairs = None if names.pair is None else source.texts(names.pair, "--pair-column")
    inputs = {name: source.cells(name, type) for name, type in kind.inputs.items()}
    labels = [] if column is None else source.column(column, _LABEL_HINT)
    return RawSplit(
        where=source.where,
        texts=texts,
        pairs=pairs,
        labels=[_separated(value, names.separator) for value in labels],
        column=column or "",
        present=tuple(source.columns),
        inputs=inputs,
    )


def _texts(source: RawTable, column: str, names: ColumnNames) -> list[str]:
    """The texts of a column. What refuses it names the kinds that read the other columns."""
    try:
        return source.texts(column, "--text-column")
    except InvalidConfig:
        kinds = [*_reading(source.columns)]
        if not kinds:
            raise
    listed = " or ".join(f"--kind {kind}" for kind in kinds)
    alone = "" if names.text is None else " without --text-column"
    lacks = f": the column {column!r} holds no texts" if column in source.columns else ""
    raise InvalidConfig(
        f"{source.where}{lacks or f' has no column {column!r}'}. It has: "
        f"{short_list(source.columns)}. Take {listed}{alone}, or name a column of texts with "
        "--text-column."
    )


def _reading(columns: Columns) -> Iterator[str]:
    """The kinds of task that read no text, and whose columns are all there."""
    for kind in map(KINDS.get, KINDS):
        text, label = kind.columns_in(columns, ColumnNames())
        needed = {*kind.inputs, *([] if label is None else [label])}
        if text is None and needed <= columns.keys() and _are_read(columns, kind):
            yield kind.name


def _are_read(columns: Columns, kind: type[Kind]) -> bool:
    """Whether cells of a kind's inputs are of its types."""
    return bool(kind.inputs) and all(
        type.read(cell) is not None for name, type in kind.inputs.items() for cell in columns[name]
    )


_LABEL_HINT = (
    "--label-column, move the file of a split without labels out of the folder, or read the texts "
    "alone with --kind causal"
)


def _separated(value: Any, separator: str | None) -> Any:
    if separator is None or not isinstance(value, str):
        return value
    return [part.strip() for part in value.split(separator) if part.strip()]


def build_task(
    name: str,
    splits: Mapping[str, RawSplit],
    kind: type[Kind],
    *,
    classes: tuple[str, ...] | None = None,
    notes: Iterable[str] = (),
) -> TaskData:
    """A task out of checked splits; what is missing of validation and test is cut from train.

    Args:
        name: the task's name.
        splits: "train" and, where the source has them, "validation" and "test".
        kind: reads the labels.
        classes: the names of classes or labels, where the source fixes them; those of train
            otherwise.
        notes: what the source has to say about the splits.

    Raises:
        InvalidConfig: labels that do not fit, or too few examples to cut train.
    """
    read = kind.parse_labels(splits, classes)
    whole, said = _completed(splits["train"].where, read.splits, read.kind)
    return TaskData(
        name=name,
        kind=read.kind,
        **{split: examples.dataset() for split, examples in whole.items()},
        metric=read.kind.metrics[0],
        notes=(
            *notes,
            *read.notes,
            *_worded([*said, *_blanks(whole), *_conflicts(whole), *_overlaps(whole)], read.kind),
        ),
    )


def _worded(notes: Iterable[str], kind: Kind) -> list[str]:
    """The notes in the words of what a kind reads: they are written for texts."""
    if kind.head.reads == "texts":
        return list(notes)
    return [note.replace("texts", "pictures").replace(" text ", " picture ") for note in notes]


def _completed(
    where: str, given: Mapping[str, Examples], kind: Kind
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
    _check_left(where, given["train"], cut.train, kind)
    notes = [
        f"{split}: cut from train, {shares[split]:.0%} of it ({sizes[split]:,} examples), in the "
        "order of the texts' SHA-256."
        for split in missing
    ]
    repeated = len(given["train"]) - len(set(given["train"].text_keys()))
    if repeated:
        notes.append(f"train: {repeated:,} repeated texts were dropped before it was cut.")
    notes += _settled(given["train"], len(once))
    return {**cut._asdict(), **{s: e for s, e in given.items() if s != "train"}}, notes


def _settled(train: Examples, left: int) -> list[str]:
    """A note on texts with different labels in a source of which each text is kept once."""
    rows = disputed(train)
    if not rows:
        return []
    if isinstance((train.labels or [None])[0], float):
        return [f"train: {_different(rows)}. Each text gets the mean of its rows."]
    gone = len(set(train.text_keys())) - left
    return [
        f"train: {_different(rows)}. A text keeps the label of more than half of its rows; "
        f"{gone:,} texts without one are left out."
    ]


def _conflicts(splits: Mapping[str, Examples]) -> list[str]:
    """A note for every split in which texts occur with different labels."""
    found = {split: disputed(examples) for split, examples in sorted(splits.items())}
    return [
        f"{split}: {_different(rows)}; all their rows are kept."
        for split, rows in found.items()
        if rows
    ]


def _different(rows: Sequence[Sequence[int]]) -> str:
    shown = ", ".join(str(row + 1) for row in rows[0][:_MOST_ROWS])
    return f"{len(rows):,} texts occur with different labels, the first in rows {shown}"


def _check_left(where: str, before: Examples, after: Examples, kind: Kind) -> None:
    lost = kind.missing_classes(before.labels or (), after.labels or ())
    if lost or not len(after):
        few = f"class {short_repr(lost[0])}" if lost else "any kind"
        raise InvalidConfig(
            f"{where} has too few examples of {few}: none is left after validation and test "
            "examples are cut from it. Add examples, or give the missing splits as files of their "
            "own."
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
    """A note for every evaluation split that shares texts with train, or test with validation."""
    pairs = (("validation", "train"), ("test", "train"), ("test", "validation"))
    notes = (_overlap(split, splits[split], other, splits[other]) for split, other in pairs)
    return [note for note in notes if note]


def _overlap(split: str, examples: Examples, other: str, seen: Examples) -> str:
    """A note on the texts that two splits share, some of them but for case and spaces."""
    rows, near = rows_by_text(seen), set(map(_plain, seen.text_keys(ascii=False)))
    keys, plain = examples.text_keys(), map(_plain, examples.text_keys(ascii=False))
    shared = {row: rows[key] for row, key in enumerate(keys) if key in rows}
    alike = sum(key not in rows and each in near for key, each in zip(keys, plain, strict=True))
    said = []
    if shared:
        said.append(
            f"{len(shared):,} of {len(examples):,} examples have a text that is in {other} "
            f"too{_other_labels(examples, seen, shared)}"
        )
    if alike:
        said.append(
            f"{alike:,} of {len(examples):,} examples have a text that is in {other} too but for "
            "case, spaces or Unicode form"
        )
    return f"{split}: {'; '.join(said)}." if said else ""


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _other_labels(examples: Examples, train: Examples, shared: Mapping[int, list[int]]) -> str:
    """The number of shared texts that `train` has with other labels alone, in words."""
    if examples.labels is None or train.labels is None:
        return ""
    labels, known = examples.labels, train.labels
    other = [row for row, rows in shared.items() if labels[row] not in [known[r] for r in rows]]
    return f", {len(other):,} of them with another label" if other else ""
