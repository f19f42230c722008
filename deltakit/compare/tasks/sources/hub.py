"""A task from a data set on the Hugging Face Hub."""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from deltakit._network import HUB_TIMEOUT, hub_answers
from deltakit.compare.tasks.data.columns import (
    ColumnNames,
    RawSplit,
    RawTable,
    is_null,
    no_label,
    short_list,
)
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.listed import with_lists
from deltakit.compare.tasks.data.pictures import COLUMN, content
from deltakit.compare.tasks.kinds import Kind, kind_of
from deltakit.compare.tasks.sources.assemble import build_task, select_columns
from deltakit.compare.tasks.task import TASKS, TaskData
from deltakit.errors import InvalidConfig, UnknownName

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_VALIDATION = ("validation", "valid", "val", "dev", "validation_matched")

_TEXT_COLUMNS: tuple[tuple[str, str | None], ...] = (
    ("text", None),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("sentence", None),
)
"""What the texts of well-known data sets are called, tried in this order."""


class Place(NamedTuple):
    """A data set on the Hub, and which of its configurations."""

    repo: str
    config: str | None


def load_hub(name: str, names: ColumnNames | None = None, kind: str | None = None) -> TaskData:
    """Loads a task from the Hub, or from the local cache where the Hub cannot be reached.

    Where test is missing or its labels are hidden, the validation split is the test split, and
    validation is cut from train. Rows without a text or a label are left out. `TaskData.notes`
    says what was done.

    Args:
        name: ``owner/dataset``, ``dataset/config`` or ``owner/dataset/config``.
        names: the columns; by default texts are looked for by their usual names.
        kind: the kind of task; by default what train looks like.

    Raises:
        UnknownName: the data set cannot be found or loaded, or the kind is unknown.
        InvalidConfig: its columns or labels do not make a task.
    """
    return hub_task(name, _downloaded(name), names or ColumnNames(), kind)


def hub_task(
    name: str, loaded: "Mapping[str, Dataset]", asked: ColumnNames, kind: str | None = None
) -> TaskData:
    """A task out of the splits that the Hub gave.

    Raises:
        InvalidConfig: the train split is missing, or the columns do not make a task.
    """
    train = _first(loaded, ("train",))
    if train is None:
        raise InvalidConfig(
            f"the Hub data set {name!r} has no train split. It has: {short_list(loaded)}. Save the "
            "split that you want as train in a local folder, and give the folder."
        )
    label = asked.label or "label"
    first = RawTable(where=f"train of {name!r}", columns=_named(train, label))
    chosen = kind_of(kind, with_lists(first, label, kind).columns, asked)
    columns = _choose_columns(train.column_names, asked, chosen)
    named = columns.text not in (None, "text")
    notes = [f"the texts are the columns {_shown(columns)}."] if named else []
    input_ = "an input" if chosen.inputs else "a text"
    splits: dict[str, RawSplit] = {}
    validation, test = _first(loaded, _VALIDATION), _first(loaded, ("test",))
    for split, dataset in (("train", train), ("validation", validation), ("test", test)):
        if dataset is None or (split == "test" and _unlabelled(dataset, train, columns.label)):
            continue
        source, dropped = _complete_rows(f"{split} of {name!r}", dataset, columns, chosen.inputs)
        if split == "test" and dropped == len(dataset):
            continue
        if dropped:
            notes.append(f"{split}: {dropped:,} rows without {input_} or a label were left out.")
        splits[split] = select_columns(with_lists(source, label, kind), columns, chosen)
    if "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        notes.append("test: the source's validation split; the source has no labelled test split.")
    notes += _unread(loaded, (train, validation, test))
    classes = _class_names(train, columns.label)
    return build_task(name, splits, chosen, classes=classes, notes=notes)


def _first(loaded: "Mapping[str, Dataset]", names: tuple[str, ...]) -> "Dataset | None":
    return next((loaded[name] for name in names if name in loaded), None)


def _unlabelled(test: "Dataset", train: "Dataset", label: str | None) -> bool:
    """True if only train has a column of labels."""
    return label in train.column_names and label not in test.column_names


def _unread(loaded: "Mapping[str, Dataset]", used: "Sequence[Dataset | None]") -> list[str]:
    """A note on splits that are called like none of a task."""
    left = [name for name, split in loaded.items() if not any(split is each for each in used)]
    return [f"splits of the source that are not read: {short_list(left)}."] if left else []


def _choose_columns(present: list[str], asked: ColumnNames, kind: type[Kind]) -> ColumnNames:
    """`asked`, with the usual names where no text column is named."""
    own, label = kind.columns_in(dict.fromkeys(present, []), asked)
    known = own is None or own in present
    texts = () if asked.text or known else _TEXT_COLUMNS
    for text, pair in texts:
        if text in present and (pair is None or pair in present):
            usual = pair if "--pair-column" in kind.options else None
            return dataclasses.replace(asked, text=text, pair=asked.pair or usual, label=label)
    return dataclasses.replace(asked, text=own, label=label)


def _shown(columns: ColumnNames) -> str:
    return " and ".join(repr(name) for name in (columns.text, columns.pair) if name is not None)


# ------------------------------------------------------------------------------------ the rows


def _class_names(train: "Dataset", label: str | None) -> tuple[str, ...] | None:
    """The names that the data set gives its classes or labels, in the order of their ids."""
    from datasets import ClassLabel, List

    feature = train.features.get(label)
    each = feature.feature if isinstance(feature, List) else feature
    return tuple(each.names) if isinstance(each, ClassLabel) else None


def _named(dataset: "Dataset", label: str | None) -> Columns:
    """The columns, class ids replaced by the classes' names; a hidden label is None."""
    columns: dict[str, list[Any]] = _with_pictures(dataset)
    names = _class_names(dataset, label)
    if label is not None and names is not None:
        columns[label] = [_name(value, names) for value in columns[label]]
    elif label in columns and all(value == -1 for value in columns[label]):
        columns[label] = [None] * len(dataset)
    return columns


def _with_pictures(dataset: "Dataset") -> Columns:
    """The columns, with the bytes of pictures. One column of pictures is called "image"."""
    from datasets import Image

    pictures = [name for name, each in dataset.features.items() if isinstance(each, Image)]
    for name in pictures:
        dataset = dataset.cast_column(name, Image(decode=False))
    columns: dict[str, list[Any]] = dict(dataset[:])
    for name in pictures:
        called = COLUMN if len(pictures) == 1 else name
        columns[called] = [content(cell) for cell in columns.pop(name)]
    return columns


def _name(value: Any, names: tuple[str, ...]) -> Any:
    """The name of a class, or of each of several; None where one of them is hidden."""
    if isinstance(value, list):
        found = [_name(each, names) for each in value]
        return None if None in found else found
    return None if value is None or value < 0 else names[value]


def _complete_rows(
    where: str, dataset: "Dataset", names: ColumnNames, inputs: Iterable[str]
) -> tuple[RawTable, int]:
    """The rows that have all inputs and a label, and how many have not.

    Your own file can be corrected, and raises; a data set on the Hub cannot.
    """
    raw = _named(dataset, names.label)
    keep = [True] * len(dataset)
    needed = [(name, is_null) for name in (names.text, names.pair, *inputs)]
    for name, absent in (*needed, (names.label, no_label)):
        if name is not None and name in raw:
            keep = [k and not absent(value) for k, value in zip(keep, raw[name], strict=True)]
    if all(keep):
        return RawTable(where=where, columns=raw), 0
    columns = {
        name: [value for value, kept in zip(values, keep, strict=True) if kept]
        for name, values in raw.items()
    }
    return RawTable(where=where, columns=columns), len(keep) - sum(keep)


# ------------------------------------------------------------------------------------- the Hub


def _places(name: str) -> list[Place]:
    """What `name` can mean. Raises `UnknownName` if it can mean nothing."""
    match name.split("/"):
        case [owner, dataset] if owner and dataset:
            return [Place(name, None), Place(owner, dataset)]
        case [owner, dataset, config] if owner and dataset and config:
            return [Place(f"{owner}/{dataset}", config)]
    raise UnknownName(
        f"{name!r} is not the name of a Hub data set. Write owner/dataset, dataset/config or "
        f"owner/dataset/config, or use a shipped task: {', '.join(TASKS)}."
    )


def _downloaded(name: str) -> "DatasetDict":
    from datasets import load_dataset
    from datasets.exceptions import DatasetNotFoundError

    places = _places(name)
    reasons: list[str] = []
    with _offline_unless_reachable(places[0].repo):
        for repo, config in places:
            try:
                # The prefix keeps a folder of this name in the working directory out of it.
                return load_dataset(f"hf://datasets/{repo}", config)
            except ConnectionError:
                reasons.append("the Hub cannot be reached, and the local cache does not have it")
            except DatasetNotFoundError as error:
                reasons.append(str(error))
            except Exception as error:
                # Builders of data sets raise whatever they like; to users it is one thing.
                raise _not_loaded(name, str(error)) from error
    raise _not_loaded(name, reasons[0])


def _not_loaded(name: str, reason: str) -> UnknownName:
    line = " ".join(reason.split())[:300].rstrip(".")
    return UnknownName(
        f"the Hub data set {name!r} could not be loaded: {line}. Check the name and the network "
        f"(HF_HUB_OFFLINE is respected), give a local folder or file, or use a shipped task: "
        f"{', '.join(TASKS)}."
    )


@contextlib.contextmanager
def _offline_unless_reachable(repo: str) -> Iterator[None]:
    """Inside, `datasets` looks only in its cache if the Hub does not answer quickly."""
    from datasets import config

    before = config.HF_HUB_OFFLINE
    config.HF_HUB_OFFLINE = before or not _reachable(repo)
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before


def _reachable(repo: str) -> bool:
    from huggingface_hub import HfApi

    return hub_answers(lambda: HfApi().dataset_info(repo, timeout=HUB_TIMEOUT))
