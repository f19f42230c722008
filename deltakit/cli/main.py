"""The command ``deltakit``. What is heavy is imported when a command runs, not before."""

import sys

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
from deltakit.cli.plan import plan
from deltakit.cli.report import report
from deltakit.cli.shipped_plans import copy, show
from deltakit.cli.sites import sites
from deltakit.cli.summary import summary
from deltakit.errors import DeltakitError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="deltakit")
def cli() -> None:
    """Parameter-efficient fine-tuning methods, and an honest comparison of them.

    \b
    Start here:
      deltakit compare --methods adapter,lora,fusion
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


def _in_one_line(error: OSError) -> str:
    """A file system's error: which file, why, and the next step."""
    reason = " ".join(str(error.strerror or error).split()).rstrip(".")
    if error.filename is None and unwritable(error) is None:
        return f"{type(error).__name__}: {reason}."
    place = "" if error.filename is None else f"{str(error.filename)!r}: "
    return (
        f"{place}{reason}. Finished cells are kept. Make room, or choose a folder that can be "
        "written (--out, DELTAKIT_CACHE, TMPDIR), and give the same command again."
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
    except OSError as error:
        click.echo(f"deltakit: {_in_one_line(error)}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
