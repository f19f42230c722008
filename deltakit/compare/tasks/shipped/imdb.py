"""IMDB: is a film review positive? From Maas et al. (2011)."""

import re
from typing import ClassVar

from deltakit.compare.tasks.data.splits import Examples, carve
from deltakit.compare.tasks.kinds import Classification
from deltakit.compare.tasks.shipped.movie_reviews import LABELS, read_reviews
from deltakit.compare.tasks.task import Task, TaskData, register_task

_BREAKS = re.compile(r"(?:\s*<br\s*/?>\s*)+")


@register_task("imdb")
class Imdb(Task):
    """25,000 reviews, 96 of them repeated; 2,000 are test and 1,000 validation."""

    description: ClassVar[str] = "sentiment of a film review, 2 classes"
    version: ClassVar[int] = 1
    citation: ClassVar[str] = """@inproceedings{maas2011learning,
  title = {Learning Word Vectors for Sentiment Analysis},
  author = {Maas, Andrew L. and Daly, Raymond E. and Pham, Peter T. and Huang, Dan and Ng, Andrew \
Y. and Potts, Christopher},
  booktitle = {Annual Meeting of the Association for Computational Linguistics},
  year = {2011}
}"""

    def load(self) -> TaskData:
        reviews = read_reviews(self.name, "imdb")
        plain = Examples(texts=[_plain(t) for t in reviews.texts], labels=reviews.labels)
        return self._task_data(
            carve(plain, test=2_000, validation=1_000), Classification(classes=LABELS)
        )


def _plain(text: str) -> str:
    """The review without its HTML line breaks."""
    return _BREAKS.sub(" ", text).strip()
