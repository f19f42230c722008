"""The positive class of a task with two classes: the one that F1, precision and the like are of."""

from dataclasses import replace
from typing import Any

from deltakit.compare.tasks.kinds.classification import Classification
from deltakit.compare.tasks.task import TaskData
from deltakit.errors import InvalidConfig, unknown


def with_positive(data: TaskData, label: str | None) -> TaskData:
    """The task with `label` as its second class, which is the positive one, and a note of it.

    Raises:
        InvalidConfig: the task does not have two classes.
        UnknownName: neither class is called `label`.
    """
    if not isinstance(data.kind, Classification) or len(data.kind.classes) != 2:
        if label is None:
            return data
        raise InvalidConfig(
            f"--positive {label} is for tasks of two classes; {data.name!r} is "
            f"{data.kind.name} ({data.kind.description}). Leave it out."
        )
    first, second = data.kind.classes
    if label is not None and label not in (first, second):
        raise unknown("--positive", label, (first, second))
    swapped = _swapped(data) if label == first else data
    return replace(swapped, notes=(*swapped.notes, _note(swapped.labels)))


def _note(labels: tuple[str, ...]) -> str:
    return (
        f"F1 and other scores of one class are of {labels[1]!r}; --positive chooses {labels[0]!r}."
    )


def _swapped(data: TaskData) -> TaskData:
    def swap(row: dict[str, Any]) -> dict[str, Any]:
        return {"label": 1 - row["label"]}

    splits = {name: getattr(data, name).map(swap) for name in ("train", "validation", "test")}
    assert isinstance(data.kind, Classification)
    return replace(data, kind=replace(data.kind, classes=data.labels[::-1]), **splits)
