"""Named entities in sentences that are made by rule: person, place, organisation or date?"""

import random
from collections.abc import Collection, Sequence
from typing import ClassVar

from deltakit.compare.tasks.data.splits import Examples, Splits
from deltakit.compare.tasks.kinds import Tokens
from deltakit.compare.tasks.task import Task, TaskData, register_task

TAGS = ("O", *(f"{letter}-{type}" for type in ("PER", "LOC", "ORG", "DATE") for letter in "BI"))

# The first part of each list is for training; the whole of it is for the other splits.
_FIRST = "Anna Ben Clara David Emma Frank Grace Henry Ines Jack Kate Liam Mia Noah Olga Paul"
_LAST = "Adams Brown Carter Davis Evans Fisher Grant Harris Irving Jones Keller Lopez Miller Nolan"
_PLACE = "Rome Berlin Madrid Vienna Oslo Boston Kyoto Cairo Lima Delhi Prague Dublin Lisbon Athens"
_EITHER = "Jordan Austin Florence Sydney Paris Charlotte Victoria Chelsea Savannah Brooklyn"
"""Names of people and of places, which only the sentence tells apart."""
_COMPANY = ("Group", "Motors", "Bank", "& Sons", "Records", "Foods")
_MONTH = "January February March April May June July August September October November December"

_TEMPLATES = (
    "PER was born in LOC on DATE .",
    "PER joined ORG in DATE .",
    "ORG opened an office in LOC .",
    "On DATE , PER flew from LOC to LOC .",
    "According to PER , ORG lost money in DATE .",
    "LOC was warm when PER arrived .",
    "The mayor of LOC met PER and PER .",
    "ORG sold its plant near LOC to ORG .",
    "PER said that ORG had hired PER .",
    "Nobody at ORG had heard of PER before DATE .",
    "After a week in LOC , PER left for LOC .",
    "In LOC , shares of ORG fell on DATE .",
    "May we ask PER to visit ORG ?",
    "The march through LOC began on DATE .",
    "The group met at the bank of a river in LOC .",
)
_KNOWN = 2 / 3
_SIZES = {"train": 1_500, "validation": 300, "test": 600}


@register_task("entities")
class Entities(Task):
    """1,500 sentences for training, 300 for validation, 600 for test, drawn with a fixed seed.

    A third of the names are not in train. Ten names are those of people and of places. The right
    tags are known, because the rule that makes a sentence gives them.
    """

    description: ClassVar[str] = "named entities in made sentences, 4 types, for tags of words"
    version: ClassVar[int] = 1

    def load(self) -> TaskData:
        draw, seen = random.Random(0), set[str]()
        parts = {
            split: _examples(draw, n, _KNOWN if split == "train" else 1, seen)
            for split, n in _SIZES.items()
        }
        return self._task_data(Splits(**parts), Tokens(tags=TAGS))


def _examples(draw: random.Random, n: int, share: float, seen: set[str]) -> Examples:
    """Sentences that are not in `seen` yet, with names from the first `share` of each list."""
    tokens: list[list[str]] = []
    labels: list[tuple[int, ...]] = []
    while len(tokens) < n:
        words, tags = _sentence(draw, share)
        text = " ".join(words)
        if text not in seen:
            seen.add(text)
            tokens.append(words)
            labels.append(tuple(map(TAGS.index, tags)))
    return Examples(inputs={"tokens": tokens}, labels=labels)


def _sentence(draw: random.Random, share: float) -> tuple[list[str], list[str]]:
    words, tags = list[str](), list[str]()
    for part in draw.choice(_TEMPLATES).split():
        name = _name(draw, part, share)
        words += name or [part]
        tags += [f"{'I' if at else 'B'}-{part}" for at in range(len(name))] or ["O"]
    return words, tags


def _name(draw: random.Random, type_: str, share: float) -> Sequence[str]:
    """The words of a name of a type; none for a word that is no type."""
    match type_:
        case "PER":
            first = _one(draw, (*_known(_FIRST, share), *_known(_EITHER, share)))
            return [first, _one(draw, _known(_LAST, share))] if draw.random() < 0.5 else [first]
        case "LOC":
            return [_one(draw, (*_known(_PLACE, share), *_known(_EITHER, share)))]
        case "ORG":
            owner = _one(draw, (*_known(_LAST, share), *_known(_EITHER, share)))
            return [owner, *_one(draw, _COMPANY).split()]
        case "DATE":
            day = [str(draw.randrange(1, 29))] if draw.random() < 0.5 else []
            return [*day, _one(draw, _MONTH.split()), str(draw.randrange(1950, 2020))]
    return []


def _known(names: str, share: float) -> Collection[str]:
    listed = names.split()
    return listed[: round(share * len(listed))]


def _one(draw: random.Random, names: Collection[str]) -> str:
    return draw.choice([*names])
