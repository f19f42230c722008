"""Chats about a number of things: each question changes it, and the assistant tells it."""

from collections.abc import Iterator
from itertools import product
from typing import ClassVar

from deltakit.compare.tasks.data.splits import Examples, carve
from deltakit.compare.tasks.kinds import Chat
from deltakit.compare.tasks.task import Task, TaskData, register_task

_THINGS = ("apples", "books", "coins", "stamps")
_HAD, _MORE, _LESS = range(2, 10), range(1, 9), (1, 2)


@register_task("counting")
class Counting(Task):
    """All chats of two questions that a rule makes, so that every answer is right."""

    description: ClassVar[str] = "chats of two questions about a number of things, by rule"

    def load(self) -> TaskData:
        chats = list(_chats())
        whole = Examples(
            inputs={"messages": [before for before, _ in chats]},
            labels=[answer for _, answer in chats],
        )
        return self._task_data(carve(whole, test=100, validation=60), Chat(short=True))


def _chats() -> Iterator[tuple[list[list[str]], str]]:
    """The messages before the last turn, and that turn."""
    for thing, had, more, less in product(_THINGS, _HAD, _MORE, _LESS):
        before = [
            ["user", f"I have {had} {thing} and buy {more} more. How many are there?"],
            ["assistant", f"{had + more} {thing}"],
            ["user", f"I give {less} away. How many are left?"],
        ]
        yield before, f"{had + more - less} {thing}"
