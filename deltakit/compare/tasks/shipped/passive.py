"""Sentences to rewrite: each is in the active voice, its target in the passive."""

from collections.abc import Iterator
from itertools import product
from typing import ClassVar

from deltakit.compare.tasks.data.splits import Examples, carve
from deltakit.compare.tasks.kinds import Generation
from deltakit.compare.tasks.task import Task, TaskData, register_task

_AGENTS = ("teacher", "farmer", "doctor", "painter", "nurse", "baker", "pilot", "singer", "judge")
_ACTS = {
    ("wrote", "written"): ("letters", "a book", "the report"),
    ("sold", "sold"): ("apples", "the house", "two bicycles"),
    ("broke", "broken"): ("the windows", "a cup", "the old lamp"),
    ("took", "taken"): ("three pictures", "the keys", "a taxi"),
    ("forgot", "forgotten"): ("the names", "a hat", "the password"),
    ("drew", "drawn"): ("two horses", "a map", "the curtains"),
    ("found", "found"): ("coins", "a dog", "the way"),
    ("painted", "painted"): ("the doors", "a portrait", "the fence"),
    ("stole", "stolen"): ("cakes", "the bread", "a boat"),
    ("ate", "eaten"): ("the pears", "a sandwich", "the soup"),
}
"""A past tense and its participle, and what was done to."""
_TIMES = ("yesterday", "last week", "on Monday", "in March", "after lunch", "before the war")


@register_task("passive")
class Passive(Task):
    """All sentences that a grammar makes, so that every target is right by rule."""

    description: ClassVar[str] = "sentences to put into the passive voice, by rule"

    def load(self) -> TaskData:
        pairs = list(_sentences())
        sources, targets = ([pair[side] for pair in pairs] for side in (0, 1))
        whole = Examples(texts=sources, labels=targets)
        return self._task_data(carve(whole, test=300, validation=200), Generation())


def _sentences() -> Iterator[tuple[str, str]]:
    acts = ((*verb, thing) for verb, things in _ACTS.items() for thing in things)
    for agent, (past, participle, thing), time in product(_AGENTS, acts, _TIMES):
        be = "were" if thing.endswith("s") else "was"
        passive = f"{thing} {be} {participle} by the {agent} {time}."
        yield f"The {agent} {past} {thing} {time}.", passive[0].upper() + passive[1:]
