"""Rotten Tomatoes as texts to model: what comes next in a sentence of a film review?"""

from typing import ClassVar

from deltakit.compare.tasks.data.splits import Examples, carve
from deltakit.compare.tasks.kinds import Causal
from deltakit.compare.tasks.shipped.movie_reviews import read_reviews
from deltakit.compare.tasks.shipped.rotten_tomatoes import RottenTomatoes
from deltakit.compare.tasks.task import Task, TaskData, register_task


@register_task("rotten_tomatoes_lm")
class RottenTomatoesLm(Task):
    """The sentences of `rotten_tomatoes`, in its splits, without their labels."""

    description: ClassVar[str] = "perplexity of sentences from film reviews, for decoders"
    version: ClassVar[int] = 1
    citation: ClassVar[str] = RottenTomatoes.citation

    def load(self) -> TaskData:
        texts = Examples(texts=read_reviews(self.name, "rotten_tomatoes").texts)
        return self._task_data(carve(texts, test=1_600, validation=1_000), Causal())
