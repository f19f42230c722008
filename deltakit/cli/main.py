"""The command ``deltakit``. What is heavy is imported when a command runs, not before."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import click

from deltakit import __version__
from deltakit._files import unwritable
from deltakit.cli.choose import choose
from deltakit.cli.cite import cite
from deltakit.cli.compare import compare
from deltakit.cli.completion import completion
from deltakit.cli.convert import convert
from deltakit.cli.evaluate import evaluate
from deltakit.cli.listing import list_names
from deltakit.cli.methods import methods
from deltakit.cli.options import INTERRUPTED
from deltakit.cli.plan import plan
from deltakit.cli.report import report
from deltakit.cli.sections import CommandsInSections
from deltakit.cli.shipped_plans import copy, show
from deltakit.cli.sites import sites
from deltakit.cli.summary import summary
from deltakit.errors import DeltakitError

KEPT = {
    "compare": "Finished cells are kept",
    "choose": "Finished trainings are kept",
    "evaluate": "The verdicts on judged rows are kept",
}
"""What is stored already when one of several results cannot be."""


class Commands(CommandsInSections):
    """The commands. Each tells in one line that it was stopped, or that a disk is full."""

    def invoke(self, ctx: click.Context) -> object:
        with _noted_interrupts() as interrupts:
            try:
                return super().invoke(ctx)
            except (KeyboardInterrupt, click.Abort):
                _stop(ctx)
            except Exception as error:
                if interrupts:
                    _stop(ctx)
                if isinstance(error, DeltakitError | click.ClickException):
                    raise
                found = error if isinstance(error, OSError) else unwritable(error)
                if found is None:
                    raise
                raise DeltakitError(_in_one_line(found, _name(ctx))) from error


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="deltakit")
def cli() -> None:
    """Parameter-efficient fine-tuning methods, and an honest comparison of them.

    \b
    Start here:
      deltakit compare --methods adapter,lora,fusion    a table of three methods
      deltakit choose --task reviews.csv --minutes 20   one answer, within 20 minutes
      deltakit COMMAND --help                           what a command does, with examples
    """


for _command in (
    compare,
    choose,
    plan,
    report,
    evaluate,
    methods,
    list_names,
    show,
    copy,
    sites,
    summary,
    convert,
    cite,
    completion,
):
    cli.add_command(_command)


@contextlib.contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """Inside, each Ctrl-C is noted: a library may make another error of it, as of a failed import.

    It stays as it is where it is ignored, and outside the main thread.
    """
    noted: list[int] = []

    def note(number: int, frame: object) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    alone = threading.current_thread() is threading.main_thread()
    usual = alone and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if usual:
        signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        if usual:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _name(ctx: click.Context) -> str:
    return ctx.invoked_subcommand or ""


def _stop(ctx: click.Context) -> NoReturn:
    """Ends the command after Ctrl-C, with a line on where the same command begins."""
    command = _name(ctx)
    kept = f"{KEPT.get(command, 'No file is half written')}; "
    goes_on = "the same command goes on there" if command in KEPT else "give the same command again"
    click.echo(f"deltakit: stopped. {kept}{goes_on}.", err=True)
    raise SystemExit(INTERRUPTED)


def _in_one_line(error: OSError, command: str) -> str:
    """A file system's error: which file, why, and the next step."""
    reason = " ".join(str(error.strerror or error).split()).rstrip(".")
    if error.filename is None and unwritable(error) is None:
        return f"{type(error).__name__}: {reason}."
    place = "" if error.filename is None else f"{str(error.filename)!r}: "
    options = "--out, DELTAKIT_CACHE, TMPDIR" if command in KEPT else "DELTAKIT_CACHE, TMPDIR"
    return (
        f"{place}{reason}. {KEPT.get(command, 'No file is half written')}. Make room, or choose a "
        f"folder that can be written ({options}), and give the same command again."
    )


def main() -> None:
    """Runs the command line. Wrong input is one line on stderr and exit code 2."""
    try:
        sys.exit(cli(prog_name="deltakit", standalone_mode=False))
    except click.ClickException as error:
        click.echo(f"deltakit: {error.format_message()} Try --help.", err=True)
        sys.exit(2)
    except DeltakitError as error:
        click.echo(f"deltakit: {error}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)
    finally:
        # An import that Ctrl-C ends inside `exec` has Python end by the signal, without exit code,
        # unless text is run again.
        eval("0")  # noqa: S307


if __name__ == "__main__":
    main()
