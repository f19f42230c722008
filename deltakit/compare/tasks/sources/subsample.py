"""Fewer examples, the same ones every time."""

import dataclasses
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from deltakit.compare.tasks.task import TaskData
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from datasets import Dataset


def subsample(
    data: TaskData, *, max_train: int | None, max_eval: int | None, seed: int = 0
) -> TaskData:
    """The task with at most a given number of examples in each split, from a seeded shuffle.

    A larger bound keeps all that a smaller one does. A split that is within its bound stays as it
    is, in its order.

    Args:
        data: the whole task.
        max_train: bound for train; None leaves it.
        max_eval: bound for validation and for test, each; None leaves both.
        seed: of the shuffle.

    Raises:
        InvalidConfig: a bound below one, or a class that has no example in train any more.
    """
    for option, bound in (("max_train", max_train), ("max_eval", max_eval)):
        if bound is not None and bound < 1:
            raise InvalidConfig(f"{option}={bound}: {option} must be a whole number above zero.")
    bounds = {"train": max_train, "validation": max_eval, "test": max_eval}
    whole = {"train": data.train, "validation": data.validation, "test": data.test}
    smaller = {split: _first_shuffled(whole[split], bounds[split], seed) for split in bounds}
    _check_classes(data, smaller["train"])
    notes = [
        f"{split}: {len(smaller[split]):,} of {len(whole[split]):,} examples (seed {seed})."
        for split in bounds
        if len(smaller[split]) < len(whole[split])
    ]
    if notes:
        notes += _still_shared(whole, smaller)
    return dataclasses.replace(data, **smaller, notes=(*data.notes, *notes))


def _still_shared(
    whole: Mapping[str, "Dataset"], smaller: Mapping[str, "Dataset"]
) -> Iterator[str]:
    """A note for each evaluation split that shares texts with train, on what is left of both."""
    for split in ("validation", "test"):
        if not _shared(whole["train"], whole[split]):
            continue
        left = _shared(smaller["train"], smaller[split])
        yield (
            f"{split}: {left:,} of the {len(smaller[split]):,} examples that are left have a text "
            f"that is in the {len(smaller['train']):,} of train too."
        )


def _shared(train: "Dataset", split: "Dataset") -> int:
    seen = set(_inputs(train))
    return sum(each in seen for each in _inputs(split))


def _inputs(split: "Dataset") -> list[str]:
    """All of each example but its label."""
    names = [name for name in split.column_names if name != "label"]
    columns = split[:]
    return [repr(row) for row in zip(*(columns[name] for name in names), strict=True)]


def _first_shuffled(dataset: "Dataset", bound: int | None, seed: int) -> "Dataset":
    if bound is None or bound >= len(dataset):
        return dataset
    order = list(range(len(dataset)))
    random.Random(seed).shuffle(order)
    return dataset.select(order[:bound])


def _check_classes(data: TaskData, train: "Dataset") -> None:
    lost = data.kind.missing_classes(_labels(data.train), _labels(train))
    if lost:
        raise InvalidConfig(
            f"task {data.name!r}: {len(train):,} training examples hold none of class "
            f"{lost[0]!r} ({len(data.labels)} classes). Raise --max-train-samples."
        )


def _labels(split: "Dataset") -> list[Any]:
    return list(split[:].get("label", ()))
