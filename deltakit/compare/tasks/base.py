"""What a task is: texts with classes in three splits, and where they come from."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeVar

from deltakit._registry import Registry
from deltakit.compare.tasks.splits import Splits

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskData:
    """A task's examples, ready to be tokenised.

    Every split has the columns ``text`` (str), ``label`` (int, an index into `labels`) and, where
    the task is about pairs, ``text_pair`` (str).

    Attributes:
        name: what the column ``task`` of the results says.
        labels: the names of the classes; the index is the class id.
        train: what the weights are trained on.
        validation: what choices are made on.
        test: what scores are reported on, and nothing else.
        metric: the score's name.
        citation: BibTeX of the paper that the data comes from.
        notes: what a reader of the scores must know about the splits; the report prints them.
    """

    name: str
    labels: tuple[str, ...]
    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    metric: str = "accuracy"
    citation: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_pairs(self) -> bool:
        """Whether an example is a pair of texts."""
        return "text_pair" in self.train.column_names

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of the class names, the metric and every example of every split."""
        digest = hashlib.sha256()
        for part in (*self.labels, self.metric):
            digest.update(_framed(part))
        for split in (self.train, self.validation, self.test):
            digest.update(_framed(str(len(split))))
            for column in sorted(split.column_names):
                values = split[:][column]
                digest.update(_framed(column))
                digest.update(b"".join(_framed(str(value)) for value in values))
        return digest.hexdigest()


def _framed(text: str) -> bytes:
    """The text after its length in bytes: no two lists of texts give the same bytes."""
    encoded = text.encode()
    return b"%d:%b" % (len(encoded), encoded)


class Task(ABC):
    """A task that deltakit ships: one class in one file, registered with `register_task`.

    Class variables that a task sets: `name` (what users type), `description` (one line), `version`
    (raised when the examples or the splits change) and `citation` (BibTeX).
    """

    name: ClassVar[str]
    description: ClassVar[str]
    version: ClassVar[int]
    citation: ClassVar[str]

    @abstractmethod
    def load(self) -> TaskData:
        """The examples. Raises `MissingExtra` where the package that holds them is missing."""

    def _task_data(self, splits: Splits, labels: tuple[str, ...]) -> TaskData:
        """What `load` returns, out of the splits and the names of the classes."""
        return TaskData(
            name=self.name,
            labels=labels,
            train=splits.train.dataset(),
            validation=splits.validation.dataset(),
            test=splits.test.dataset(),
            citation=self.citation,
        )


TASKS: Registry[type[Task]] = Registry("task")

T = TypeVar("T", bound=type[Task])


def register_task(cls: T) -> T:
    """Class decorator: makes a task known by its `name`.

    Raises:
        NameInUse: another task has the name.
    """
    TASKS.add(cls.name, cls)
    return cls
