"""Rotten Tomatoes: is a sentence of a film review positive? From Pang and Lee (2005)."""

from typing import ClassVar

from deltakit.compare.tasks.data.splits import carve
from deltakit.compare.tasks.kinds import Classification
from deltakit.compare.tasks.shipped.movie_reviews import LABELS, read_reviews
from deltakit.compare.tasks.task import Task, TaskData, register_task


@register_task("rotten_tomatoes")
class RottenTomatoes(Task):
    """8,530 sentences; 1,600 are test and 1,000 validation."""

    description: ClassVar[str] = "sentiment of a sentence from a film review, 2 classes"
    version: ClassVar[int] = 1
    citation: ClassVar[str] = """@inproceedings{pang2005seeing,
  title = {Seeing Stars: Exploiting Class Relationships for Sentiment Categorization with Respect \
to Rating Scales},
  author = {Pang, Bo and Lee, Lillian},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year = {2005}
}"""

    def load(self) -> TaskData:
        reviews = read_reviews(self.name, "rotten_tomatoes")
        return self._task_data(
            carve(reviews, test=1_600, validation=1_000), Classification(classes=LABELS)
        )
