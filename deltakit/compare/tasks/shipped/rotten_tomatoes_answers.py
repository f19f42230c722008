"""Rotten Tomatoes as a question: does a decoder say whether a sentence is positive?"""

from typing import ClassVar

from deltakit.compare.tasks.data.splits import Examples, carve
from deltakit.compare.tasks.kinds import Answers
from deltakit.compare.tasks.shipped.movie_reviews import LABELS, read_reviews
from deltakit.compare.tasks.shipped.rotten_tomatoes import RottenTomatoes
from deltakit.compare.tasks.task import Task, TaskData, register_task


@register_task("rotten_tomatoes_answers")
class RottenTomatoesAnswers(Task):
    """The sentences of `rotten_tomatoes`, in its splits, each between two words of a prompt."""

    description: ClassVar[str] = "sentiment of a sentence as a word, for decoders"
    version: ClassVar[int] = 1
    citation: ClassVar[str] = RottenTomatoes.citation

    def load(self) -> TaskData:
        reviews = read_reviews(self.name, "rotten_tomatoes")
        answers = [LABELS[label] for label in reviews.labels or ()]
        # Carved as sentences, then put into prompts: the splits are those of `rotten_tomatoes`.
        splits = carve(Examples(texts=reviews.texts, labels=answers), test=1_600, validation=1_000)
        return self._task_data(splits.with_texts(_prompt), Answers())


def _prompt(text: str) -> str:
    return f"Review: {text}\nSentiment:"
