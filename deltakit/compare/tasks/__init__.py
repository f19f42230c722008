"""The tasks of a comparison: shipped ones, local files, data sets on the Hub.

A shipped task is one file beside this one. Importing this package registers all of them and reads
no data.
"""

import importlib
import pkgutil

from deltakit.compare.tasks.base import TASKS, Task, TaskData, register_task
from deltakit.compare.tasks.folder import expanded, load_folder
from deltakit.compare.tasks.hub import load_hub
from deltakit.compare.tasks.sampling import subsample
from deltakit.compare.tasks.tables import SUFFIXES
from deltakit.errors import InvalidConfig, unknown

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "TASKS",
    "Task",
    "TaskData",
    "load_folder",
    "load_hub",
    "load_task",
    "register_task",
    "subsample",
]


def load_task(
    name: str,
    *,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
) -> TaskData:
    """The task that ``--task`` names.

    A shipped task's name comes first, then a local path (whatever exists, or looks like one), then
    the Hub. Write ``./imdb`` for a folder that is called like a shipped task.

    Args:
        name: a shipped task, a local folder or file, or a data set on the Hub.
        text_column: the column of texts, for one's own data; "text" by default.
        pair_column: the column of second texts, for one's own data about pairs.
        label_column: the column of labels, for one's own data; "label" by default.

    Raises:
        UnknownName: nothing is called `name`.
        MissingExtra: the package with a shipped task's data is not installed.
        InvalidConfig: the data does not make a task, or a shipped task is given columns.
    """
    columns = {
        key: value
        for key, value in (
            ("text_column", text_column),
            ("pair_column", pair_column),
            ("label_column", label_column),
        )
        if value is not None
    }
    if name in TASKS:
        return _shipped(name, columns)
    if _is_path(name):
        return load_folder(name, **columns)
    if "/" in name:
        return load_hub(name, **columns)
    raise unknown(
        "task",
        name,
        TASKS,
        hint="A task is also a local folder or file, or a Hub data set such as glue/sst2.",
    )


def _shipped(name: str, columns: dict[str, str]) -> TaskData:
    if columns:
        option = f"--{next(iter(columns)).replace('_', '-')}"
        raise InvalidConfig(
            f"{option} is for data of your own; the shipped task {name!r} has its columns fixed. "
            f"Leave {option} out, or write ./{name} for a local folder of that name."
        )
    return TASKS.get(name)().load()


def _is_path(name: str) -> bool:
    path = expanded(name)
    looks = name.startswith((".", "/", "~")) or path.suffix.lower() in SUFFIXES
    return looks or path.exists()
