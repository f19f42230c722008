"""Tasks of short sentences that a tiny model can learn, or cannot."""

import csv
import random
from collections.abc import Callable
from pathlib import Path

WORDS = {"neg": ("bad", "dull", "poor"), "pos": ("good", "fresh", "fine")}
FILLERS = ("the", "a", "film", "plot", "of", "and", "is", "was", "it", "one")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = [*SPECIAL, *FILLERS, *(word for each in WORDS.values() for word in each)]


Sentences = Callable[[random.Random, int], tuple[str, str]]
"""A text and its label, from a generator and the row's number."""


def given_away(draw: random.Random, at: int) -> tuple[str, str]:
    """One word of the sentence gives its class away."""
    label = ("neg", "pos")[at % 2]
    words = [*draw.choices(FILLERS, k=draw.randrange(2, 8)), draw.choice(WORDS[label])]
    draw.shuffle(words)
    return " ".join(words), label


def rare(draw: random.Random, at: int) -> tuple[str, str]:
    """One of twelve sentences is of the second class."""
    return given_away(draw, int(at % 12 == 0))


def noise(draw: random.Random, at: int) -> tuple[str, str]:
    """The label has nothing to do with the text."""
    return given_away(draw, at)[0], draw.choice(("neg", "pos"))


def save_task(
    folder: Path, sentences: Sentences, *, train: int = 96, validation: int = 64, test: int = 80
) -> Path:
    """A task folder."""
    folder.mkdir(parents=True)
    for split, number in (("train", train), ("validation", validation), ("test", test)):
        draw = random.Random(split)
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            writer.writerows(sentences(draw, at) for at in range(number))
    return folder
