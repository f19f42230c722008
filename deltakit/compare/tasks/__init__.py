"""The tasks of a comparison: shipped ones, local files, data sets on the Hub.

A shipped task is one file in `shipped`. Importing this package registers all of them and reads no
data.
"""

import importlib
from collections.abc import Iterable

from deltakit.compare.tasks.data.columns import ColumnNames
from deltakit.compare.tasks.data.files import SUFFIXES
from deltakit.compare.tasks.sources.hub import load_hub
from deltakit.compare.tasks.sources.local import expanded, load_folder
from deltakit.compare.tasks.sources.subsample import subsample
from deltakit.compare.tasks.task import TASKS, Task, TaskData, register_task
from deltakit.errors import InvalidConfig, unknown

importlib.import_module(f"{__name__}.shipped")

__all__ = [
    "TASKS",
    "ColumnNames",
    "Task",
    "TaskData",
    "check_task_name",
    "load_folder",
    "load_hub",
    "load_task",
    "register_task",
    "subsample",
]


def load_task(name: str, names: ColumnNames | None = None, *, kind: str | None = None) -> TaskData:
    """The task that ``--task`` names.

    A shipped task's name comes first, then a local path (whatever exists, or looks like one), then
    the Hub. Write ``./imdb`` for a folder that is called like a shipped task.

    Args:
        name: a shipped task, a local folder or file, or a data set on the Hub.
        names: the columns of your data; by default those that the kind of task usually has.
        kind: the kind of your task (``classification``, ``regression``, ``multilabel``,
            ``causal``, ``answers``, ``generation``, ``tokens``, ``spans``, ``choice``); by default
            what the data looks like.

    Raises:
        UnknownName: nothing is called `name`.
        MissingExtra: the package with a shipped task's data is not installed.
        InvalidConfig: the data does not make a task, or a shipped task is given columns.
    """
    names = names or ColumnNames()
    check_task_name(name)
    if name in TASKS:
        kinds = ("--kind",) if kind else ()
        return _shipped(name, (*names.given(), *names.file.given(), *kinds))
    if _is_path(name):
        return load_folder(name, names, kind)
    for option in names.file.given():
        raise InvalidConfig(
            f"{option} is for a local file; {name!r} is a data set on the Hub. Leave it out."
        )
    return load_hub(name, names, kind)


def check_task_name(name: str) -> None:
    """Raises `UnknownName` for a name that neither a task nor a path nor a Hub data set has."""
    if name in TASKS or _is_path(name) or "/" in name:
        return
    raise unknown(
        "task",
        name,
        TASKS,
        hint="A task is also a local folder or file, or a Hub data set such as glue/sst2.",
    )


def _shipped(name: str, given: Iterable[str]) -> TaskData:
    for option in given:
        raise InvalidConfig(
            f"{option} is for data of your own; the shipped task {name!r} has its columns fixed. "
            f"Leave {option} out, or write ./{name} for a local folder of that name."
        )
    return TASKS.get(name)().load()


def _is_path(name: str) -> bool:
    path = expanded(name)
    looks = name.startswith((".", "/", "~")) or path.suffix.lower() in SUFFIXES
    return looks or path.exists()
