"""``deltakit report``: a run's tables again, from its cells."""

from pathlib import Path

import click


@click.command()
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
def report(folders: tuple[Path, ...]) -> None:
    """Write the tables and plots of run FOLDERS anew, and print the tables."""
    from rich.console import Console

    from deltakit.compare.report import terminal_table
    from deltakit.compare.run import report_folder

    console = Console()
    for folder in folders:
        outcome = report_folder(folder)
        console.print(terminal_table(outcome.results, outcome.predictions, outcome.run))
        console.print(f"{folder}/report.html has the whole comparison", highlight=False)
