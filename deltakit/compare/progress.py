"""What a running comparison tells whoever watches it."""

from typing import Protocol


class Progress(Protocol):
    """Receives what happens. Units are training steps; measuring counts as a few of them."""

    def begin(self, total: int, reused: int) -> None:
        """The run starts: `total` units are left to do, `reused` cells are finished already."""

    def start(self, title: str, units: int) -> None:
        """Something of `units` units starts."""

    def note(self, text: str) -> None:
        """What it is doing now."""

    def advance(self, units: int = 1) -> None:
        """Units are done."""

    def finish(self, outcome: str) -> None:
        """It ended, for example "81.3 % in 1 m 02 s"."""


class Silent:
    """Tells nobody."""

    def begin(self, total: int, reused: int) -> None:
        """Nothing."""

    def start(self, title: str, units: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def advance(self, units: int = 1) -> None:
        """Nothing."""

    def finish(self, outcome: str) -> None:
        """Nothing."""
