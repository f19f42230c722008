"""``deltakit evaluate``: the rows of a run, judged by another library."""

import sys
from pathlib import Path

import click

from deltakit.cli.options import import_option, whole


def names(value: str) -> tuple[str, ...]:
    """Names that commas separate."""
    return tuple(name for each in value.split(",") if (name := each.strip()))


def labels(value: str) -> tuple[str, ...]:
    """Labels of rows, whose settings may have commas in brackets."""
    from deltakit.core.spec import split_outside_brackets

    return tuple(name for each in split_outside_brackets(value, ",") if (name := each.strip()))


@click.command(
    epilog="""\b
Examples:
  deltakit evaluate runs/mine --with lm-eval --tasks arc_easy,hellaswag --limit 200
  deltakit evaluate runs/mine --with lm-eval --tasks my_task.yaml --rows lora --merged
  deltakit evaluate runs/mine --with mteb --tasks Banking77Classification

Exit code 0: all rows are judged. 1: some could not be. 2: wrong usage or input."""
)
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--with",
    "judge",
    required=True,
    metavar="JUDGE",
    help="The library, lm-eval or mteb: `deltakit list judges`.",
)
@click.option(
    "--tasks",
    required=True,
    type=names,
    metavar="A,B,...",
    help="The judge's names of its tasks; lm-eval also takes YAML files.",
)
@click.option(
    "--rows",
    type=labels,
    default="",
    metavar="A,B,...",
    help="Labels of rows. [all whose delta is kept]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="The seed of the rows. [0]")
@click.option("--merged", is_flag=True, help="Fold each delta into the weights of its base first.")
@click.option("--limit", type=whole, metavar="N", help="The first N examples of each task. [all]")
@click.option("--shots", type=whole, metavar="N", help="Solved examples before each. [the task's]")
@click.option("--batch-size", type=whole, default=8, metavar="N", help="Texts at once. [8]")
@import_option
def evaluate(
    run: Path,
    judge: str,
    tasks: tuple[str, ...],
    rows: tuple[str, ...],
    seed: int,
    merged: bool,
    limit: int | None,
    shots: int | None,
    batch_size: int,
) -> None:
    """Judge the rows of a RUN by another library, on tasks of its own.

    Each row's trained delta is put on its base, and the library asks the model. Its scores and
    their standard errors are stored in the run folder, and are columns of all its reports. The
    floor's row is judged too: it is the base.
    """
    from rich.console import Console

    from deltakit.cli.live import show
    from deltakit.compare.api import evaluate as ask

    evaluated = ask(
        run,
        judge,
        tasks,
        rows=rows,
        seed=seed,
        tell=click.echo,
        merged=merged,
        limit=limit,
        shots=shots,
        batch_size=batch_size,
    )
    show(Console(), evaluated.results)
    if evaluated.failed:
        sys.exit(1)
