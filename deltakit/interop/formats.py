"""The interface of a format, and the registry of all formats."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeVar

from deltakit._registry import Registry
from deltakit.core.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Format(ABC):
    """One library's folders.

    A format only translates: what it reads becomes a `Checkpoint`, what it writes was one. The
    model gives the sites and is never changed; it may be on the meta device.
    """

    title: ClassVar[str]
    """The library, in messages."""
    markers: ClassVar[str]
    """What a folder of this format is recognised by, in messages."""

    @abstractmethod
    def recognises(self, folder: Path) -> bool:
        """True if the folder claims to be of this format. Reads no weights."""

    @abstractmethod
    def read(self, folder: Path, model: "PreTrainedModel") -> Checkpoint:
        """The folder's deltas, in deltakit's words.

        Raises:
            CheckpointError: a file that is missing, torn or unsafe, or anything in it that deltakit
                cannot reproduce exactly; the message names it.
        """

    @abstractmethod
    def write(self, folder: Path, checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
        """Writes the deltas, the config last.

        Raises:
            CheckpointError: a part that the format has no exact words for; the message names it.
                Nothing has been written.
        """


class Standalone(Format):
    """A format whose folders name the sites themselves, so that no model is needed."""

    @abstractmethod
    def read_alone(self, folder: Path) -> Checkpoint:
        """As `read`."""

    @abstractmethod
    def write_alone(self, folder: Path, checkpoint: Checkpoint) -> None:
        """As `write`."""

    def read(self, folder: Path, model: "PreTrainedModel") -> Checkpoint:
        del model
        return self.read_alone(folder)

    def write(self, folder: Path, checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
        del model
        self.write_alone(folder, checkpoint)


FORMATS: Registry[Format] = Registry("format", group="formats", shipped=("deltakit.interop",))
"""By the name that ``format=`` and ``--to`` take."""

F = TypeVar("F", bound=type[Format])


def register_format(name: str) -> Callable[[F], F]:
    """Class decorator: makes a format known by `name`, which ``format=`` and ``--to`` take.

    Raises:
        NameInUse: another format has the name.
    """
    return FORMATS.register_instance(name)
