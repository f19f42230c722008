"""The tasks of a batch, for deltas that have several."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deltakit.core.delta import TaskConditioned
from deltakit.errors import IncompatibleDeltas, InvalidConfig, unknown
from deltakit.inject.attachments import Attachments, need_attachments
from deltakit.inject.compositions import program_of
from deltakit.runtime.passes import with_tasks

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def using_tasks(model: "PreTrainedModel", tasks: str | Sequence[str]) -> Iterator[None]:
    """Inside, the calls of this thread are of a task, or of one for each row of the batch.

    ::

        with dk.using_tasks(model, ["mnli", "rte", "mnli"]):
            loss = model(**batch).loss
        loss.backward()

    It is for deltas with several tasks, such as `HyperFormer`. It can be nested.

    Args:
        model: a model with such a delta.
        tasks: a task's name, or the name of each row's.

    Raises:
        InvalidConfig: no names.
        UnknownName: a name that is none of the delta's tasks.
        IncompatibleDeltas: no delta has several tasks, or two have different ones.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    known, names = _tasks(attachments), (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if not names:
        raise InvalidConfig("using_tasks(model, []): name a task, or one for each row.")
    for name in names:
        if name not in known:
            raise unknown("task", name, known)
    indices = tuple(known.index(name) for name in names)
    with with_tasks(program_of(model, attachments), indices):
        yield


def _tasks(attachments: Attachments) -> tuple[str, ...]:
    """The names of the attached deltas' tasks."""
    modules = (module for each in attachments.attached.values() for _, module in each.modules())
    inside = (each for module in modules for each in module.modules())
    found = {each.tasks for each in inside if isinstance(each, TaskConditioned)}
    if len(found) != 1:
        what = "no attached delta has several tasks" if not found else "deltas have other tasks"
        raise IncompatibleDeltas(
            f"using_tasks: {what}. Attach one such delta, for example "
            "HyperFormer(tasks=('mnli', 'rte'))."
        )
    return found.pop()
