"""The events of a running comparison, for a display."""

from typing import Protocol


class Lane(Protocol):
    """Receives what one worker does, a cell at a time.

    Units are training steps; measuring counts as a few of them.
    """

    def start(self, title: str, units: int) -> None:
        """Something of `units` units starts."""

    def note(self, text: str) -> None:
        """The present activity."""

    def advance(self, units: int = 1) -> None:
        """Units are done."""

    def finish(self, outcome: str, left: int = 0) -> None:
        """The end, for example "81.3 % in 1 m 02 s"; `left` units of it come later."""


class Progress(Protocol):
    """Receives what happens in a whole run."""

    def begin(self, total: int, reused: int) -> None:
        """The run starts: `total` units are left to do, `reused` cells are finished already."""

    def lane(self, number: int) -> Lane:
        """The lane of the worker of that number."""


class Silent:
    """A progress that shows nothing."""

    def begin(self, total: int, reused: int) -> None:
        """Nothing."""

    def lane(self, number: int) -> Lane:
        """The same for all."""
        del number
        return self

    def start(self, title: str, units: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def advance(self, units: int = 1) -> None:
        """Nothing."""

    def finish(self, outcome: str, left: int = 0) -> None:
        """Nothing."""
