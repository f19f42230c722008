"""The base class of engines, and their registry."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeVar

from deltakit._registry import Registry

if TYPE_CHECKING:
    from deltakit.compare.run.progress import Progress
    from deltakit.compare.run.queue import Job

POLL = 0.5
"""Seconds between two checks of cells that workers of another run hold."""


class Engine(ABC):
    """Gives a job's cells to workers: one class in one file, registered with `register_engine`.

    Class variable: `name`, what ``--engine`` calls it, given to `register_engine`.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def of(cls, workers: int | None) -> "Engine":
        """The engine with a number of workers; None is its own default.

        Raises:
            InvalidConfig: it does not take that number.
        """

    def prepare(self) -> None:  # noqa: B027 - most have nothing to prepare
        """Starts what takes a while and can go on while the data is read."""

    @abstractmethod
    def run(self, job: "Job", progress: "Progress") -> None:
        """Runs every cell of the job to its end, or raises with the finished ones stored."""


ENGINES: Registry[type[Engine]] = Registry("engine", group="engines")

E = TypeVar("E", bound=type[Engine])


def register_engine(name: str) -> Callable[[E], E]:
    """Class decorator: makes an engine known by `name`, which ``--engine`` takes.

    Raises:
        NameInUse: another engine has the name.
    """
    return ENGINES.register(name)
