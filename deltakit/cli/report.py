"""``deltakit report``: a run's tables again, from its cells, or those of several runs as one."""

from pathlib import Path

import click

from deltakit.cli.options import import_option
from deltakit.errors import InvalidConfig


@click.command(
    epilog="""\b
Examples:
  deltakit report runs/mine
  deltakit report from-one-machine from-another --out joined

Exit code 0: written. 2: the runs do not compare, and nothing was written."""
)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where joined runs go. [a single run's folder]"
)
@import_option
def report(folders: tuple[Path, ...], out: Path | None) -> None:
    """Rewrite the tables and plots of a run, and print the table.

    Several run FOLDERS are joined: the cells of one plan that ran on several machines, or runs of
    other methods under the same conditions. What does not compare is refused. The folder of a
    comparison at several sizes (--train-sizes) is reported as a whole.
    """
    from rich.console import Console

    from deltakit.cli.live import show, show_sizes
    from deltakit.compare.api import report_folder, report_joined, report_sizes

    if out is not None:
        outcome = report_joined(folders, out)
    elif len(folders) == 1 and (curve := report_sizes(folders[0])) is not None:
        show_sizes(curve)
        return
    elif len(folders) == 1:
        outcome = report_folder(folders[0])
    else:
        raise InvalidConfig(
            f"{len(folders)} folders are joined to a new one: name it with --out, or report them "
            "one by one."
        )
    show(Console(), outcome)
