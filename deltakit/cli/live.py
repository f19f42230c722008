"""The display of a running comparison, in a terminal and in a log."""

import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from deltakit.compare.results import Results
    from deltakit.compare.sizes import ResultsBySize

ENOUGH = 30
"""Units to have done before the time left is worth a guess."""

LOG_WIDTH = 120
"""Columns of a table that goes into a file or a pipe."""


def show(console: Console, outcome: "Results") -> None:
    """Prints a run's table, as wide as the terminal allows, and where the rest is."""
    from deltakit.compare.report.terminal import plain_text, terminal_table

    width = console.width if console.is_terminal else LOG_WIDTH
    table = terminal_table(
        outcome.results, outcome.predictions, outcome.run, outcome.verdicts, width=width
    )
    console.print(outcome.answer, highlight=False, markup=False, soft_wrap=True)
    if console.is_terminal:
        console.print(table)
    else:
        console.file.write(plain_text(table, width=LOG_WIDTH))
    console.print(
        f"{outcome.folder}/report.html has the whole comparison", highlight=False, soft_wrap=True
    )


def show_sizes(outcome: "ResultsBySize") -> None:
    """Writes what is over all sizes, and prints the table and where the rest is."""
    from deltakit.compare.sizes import write_sizes

    click.echo(write_sizes(outcome))
    click.echo(f"{outcome.page} has it over all sizes, sizes.csv every cell")


class Live:
    """A bar for the whole run and one for every running cell, under the lines of what is finished.

    Without a terminal there are only lines, with the time left in words.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bars = Progress(
            TextColumn("{task.description}", table_column=None),
            BarColumn(bar_width=30),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=600,
        )
        self.whole: TaskID | None = None
        self.folder: Path | None = None
        self.total = self.done = 0
        self.started = time.monotonic()

    def __enter__(self) -> "Live":
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def opened(self, folder: Path) -> None:
        """The run folder is known."""
        self.folder = folder
        self.say(f"run folder: {folder}")

    def begin(self, total: int, reused: int) -> None:
        """The run starts."""
        if reused:
            self.say(f"{reused} finished cells of an earlier run are taken as they are")
        self.total, self.started = total, time.monotonic()
        self.whole = self.bars.add_task("all cells", total=total)

    def lane(self, number: int) -> "LiveLane":
        """A bar of its own for each worker."""
        del number
        return LiveLane(self)

    def moved(self, units: int) -> None:
        """So much of the whole is done; less than nothing takes some back."""
        self.done += units
        if self.whole is not None:
            self.bars.advance(self.whole, units)

    def interrupted(self) -> None:
        """The user stopped the run."""
        self.bars.stop()
        self.say(f"stopped. Finished cells are in {self.folder}; the same command goes on there")

    def say(self, text: str) -> None:
        """A line above the bars."""
        self.bars.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def left(self) -> str:
        """The time left, in words; nothing before it can be guessed."""
        if self.done < ENOUGH:
            return ""
        seconds = (time.monotonic() - self.started) / self.done * (self.total - self.done)
        return f" about {seconds / 60:.0f} min left" if seconds >= 60 else f" {seconds:.0f} s left"


class LiveLane:
    """The display of one worker: a bar while its cell runs, a line when it has ended."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.part: TaskID | None = None
        self.title = ""
        self.units = self.done = 0

    def start(self, title: str, units: int) -> None:
        """A cell starts."""
        self.title, self.units, self.done = title, units, 0
        self.part = self.live.bars.add_task(title, total=units)
        if not self.live.console.is_terminal:
            self.live.say(f"{title} ...{self.live.left()}")

    def note(self, text: str) -> None:
        """The current step of the cell."""
        if self.part is not None:
            self.live.bars.update(self.part, description=f"{self.title}: {text}")

    def advance(self, units: int = 1) -> None:
        """Units of the cell are done, as far as it has any left."""
        units = min(units, self.units - self.done)
        self.done += units
        self.live.moved(units)
        if self.part is not None:
            self.live.bars.advance(self.part, units)

    def finish(self, outcome: str, left: int = 0) -> None:
        """The cell ended; what it did not use of its units counts as done, but for those `left`."""
        self.advance(self.units - left - self.done)
        if self.part is not None:
            self.live.bars.remove_task(self.part)
            self.part = None
        self.live.say(f"{self.title}: {outcome}")
