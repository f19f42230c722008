"""The interface of a judge, and the registry of all judges."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

from deltakit._registry import Registry
from deltakit.compare.records.verdict import Verdict
from deltakit.core.checks import check_whole
from deltakit.errors import InvalidConfig, MissingExtra

BATCH_SIZE = 8
"""Texts that a judge gives a model at once, by default."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """The questions of a judge, the same for every row.

    Attributes:
        tasks: the library's names of its tasks, or what else it takes for one.
        merged: whether deltas are folded into the weights of the base before they are judged.
        limit: the first examples of each task that are asked; None is all of them.
        shots: solved examples before each; None is as many as the task says.
        batch_size: texts that the model is given at once.

    Raises:
        InvalidConfig: no task, or a number out of range.
    """

    tasks: tuple[str, ...]
    merged: bool = False
    limit: int | None = None
    shots: int | None = None
    batch_size: int = BATCH_SIZE

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InvalidConfig("--tasks is empty. Name at least one task of the judge.")
        check_whole(self, batch_size=self.batch_size)
        if self.limit is not None:
            check_whole(self, limit=self.limit)
        if self.shots:
            check_whole(self, shots=self.shots)

    def optional(self) -> dict[str, int]:
        """The options that not every judge has a use for, as far as they were given."""
        given = {"--limit": self.limit, "--shots": self.shots}
        return {option: value for option, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True, eq=False)
class JudgedModel:
    """A row's model, ready to be called.

    Attributes:
        model: with its delta active or merged, in evaluation mode.
        tokenizer: what makes its inputs.
        task: what it was loaded for, as `deltakit.load_base` takes it.
        max_length: the most tokens of a text that its tables of positions and its tokenizer allow;
            they may set no end.
        added: the positions that the delta takes of the model's.
    """

    model: Any
    tokenizer: Any
    task: str
    max_length: int
    added: int = 0


class Judge(ABC):
    """Another library that scores models on tasks of its own.

    Class variables: `name`, given to `register_judge`; `package`, the module that is imported;
    `distribution`, its name for pip; `install`, what to type where it is missing; `loaded_for`,
    what a model must be loaded for (of `deltakit.load_base`); `suits`, those models in words; and
    `options`, those of ``--limit`` and ``--shots`` that it has a use for.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    distribution: ClassVar[str]
    install: ClassVar[str]
    loaded_for: ClassVar[frozenset[str]]
    suits: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()

    def version(self) -> str:
        """The version of the library. Imports nothing.

        Raises:
            MissingExtra: it is not installed.
        """
        if find_spec(self.package) is None:
            raise MissingExtra(
                f"--with {self.name} needs the package {self.distribution!r}, which is not "
                f"installed: {self.install}."
            )
        return version(self.distribution)

    def check_model(self, name: str, task: str, config: Any) -> None:
        """Raises `InvalidConfig` for a model that the judge is not for. Nothing is loaded.

        Args:
            name: what the user calls it.
            task: what the run loaded it for.
            config: of the model.
        """
        del config
        if task not in self.loaded_for:
            raise InvalidConfig(
                f"--with {self.name} judges {self.suits}; this run loaded {name!r} for {task!r}. "
                "Take another judge, or evaluate another run."
            )

    def check_options(self, questions: Questions) -> None:
        """Raises `InvalidConfig` for an option that the judge has no use for."""
        for option, value in questions.optional().items():
            if option not in self.options:
                raise InvalidConfig(
                    f"{option} {value} is not for --with {self.name}. Leave it out."
                )

    @abstractmethod
    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        """Finds every task and reads its data, before a model is loaded.

        Raises:
            UnknownName: the library has no such task.
            InvalidConfig: a task that cannot be read.
        """

    @abstractmethod
    def judge(self, judged: JudgedModel, questions: Questions) -> Iterable[Verdict]:
        """The scores of a model, by task and metric. The same model gets the same scores."""


JUDGES: Registry[type[Judge]] = Registry("judge", group="judges")
"""By the name that ``--with`` takes."""

J = TypeVar("J", bound=type[Judge])


def register_judge(name: str) -> Callable[[J], J]:
    """Class decorator: makes a judge known by `name`, which ``--with`` takes.

    Raises:
        NameInUse: another judge has the name.
    """
    return JUDGES.register(name)
