"""The beams of the search of a task whose model writes texts."""

from dataclasses import replace

from deltakit.compare.tasks.kinds import KINDS
from deltakit.compare.tasks.kinds.written import WrittenKind
from deltakit.compare.tasks.task import TaskData
from deltakit.errors import InvalidConfig


def with_beams(data: TaskData, beams: int | None) -> TaskData:
    """The task with a search of so many beams; None is the task as it is, which is greedy.

    Raises:
        InvalidConfig: the task's model writes nothing.
    """
    if beams is None:
        return data
    if not isinstance(data.kind, WrittenKind):
        fitting = sorted(name for name, kind in KINDS.items() if issubclass(kind, WrittenKind))
        raise InvalidConfig(
            f"--beams {beams} is for tasks of the kinds {', '.join(fitting)}; {data.name!r} is "
            f"{data.kind.name} ({data.kind.description}). Leave it out."
        )
    return replace(data, kind=replace(data.kind, beams=beams))
