"""Tasks: examples of one kind in three splits, and their source."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, TypeVar

from deltakit._registry import Registry
from deltakit.compare.tasks.data.splits import Splits
from deltakit.compare.tasks.kinds import Kind

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskData:
    """A task's examples, ready to be tokenised.

    Every split has the columns ``label`` (as its kind has it; texts to model have none), ``text``
    (str) and, where the task is about pairs, ``text_pair`` (str). A kind that reads no texts has
    the columns of its `inputs` in their place.

    Attributes:
        name: the value of the column ``task`` of the results.
        kind: what is asked about an example, and how the answer is judged.
        train: what the weights are trained on.
        validation: what choices are made on.
        test: what scores are reported on, and nothing else.
        metric: the score's name; one of the kind's.
        citation: BibTeX of the paper that the data comes from.
        notes: what a reader of the scores must know about the splits; the report prints them.
    """

    name: str
    kind: Kind
    train: "Dataset"
    validation: "Dataset"
    test: "Dataset"
    metric: str
    citation: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes or labels, where the kind of task has any."""
        return self.kind.labels

    @property
    def has_pairs(self) -> bool:
        """True if an example is a pair of texts."""
        return "text_pair" in self.train.column_names

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hex, of what is asked, the metric and every example of every split."""
        digest = hashlib.sha256()
        for part in (*self.kind.identity, self.metric):
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
    """A task under a short name: one class in one file, registered with `register_task`.

    Class variables: `name` (what ``--task`` calls it, given to `register_task`), `description` (one
    line), `version` (raised when the examples or the splits change) and `citation` (BibTeX; empty
    where there is none).
    """

    name: ClassVar[str]
    description: ClassVar[str]
    version: ClassVar[int] = 1
    citation: ClassVar[str] = ""

    @abstractmethod
    def load(self) -> TaskData:
        """The examples. Raises `MissingExtra` where the package that holds them is missing."""

    def _task_data(self, splits: Splits, kind: Kind) -> TaskData:
        """What `load` returns, out of the splits and the kind of their labels."""
        return TaskData(
            name=self.name,
            kind=kind,
            metric=kind.metrics[0],
            train=splits.train.dataset(),
            validation=splits.validation.dataset(),
            test=splits.test.dataset(),
            citation=self.citation or None,
        )


TASKS: Registry[type[Task]] = Registry("task", group="tasks")

T = TypeVar("T", bound=type[Task])


def register_task(name: str) -> Callable[[T], T]:
    """Class decorator: makes a task known by `name`, which ``--task`` takes.

    Raises:
        NameInUse: another task has the name.
    """
    return TASKS.register(name)
