"""``deltakit report``: a run's tables again, from its cells."""

from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
def report(folders: tuple[Path, ...]) -> None:
    """Write the tables and plots of run FOLDERS anew, and print the tables."""
    from rich.console import Console

    from deltakit.cli.live import show
    from deltakit.compare.run import report_folder

    for folder in folders:
        show(Console(), report_folder(folder))
