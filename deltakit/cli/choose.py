"""``deltakit choose``: from a task and a budget to one trained delta."""

import time
from pathlib import Path
from typing import Any

import click

from deltakit.cli.options import amount, import_files, read_config, whole
from deltakit.cli.sections import OptionsInSections


@click.command(
    cls=OptionsInSections,
    epilog="""\b
Examples:
  deltakit choose --task reviews.csv --minutes 20
  deltakit choose --task reviews.csv --max-params 1% --max-latency 1.1 --must merge

Exit code 0: a choice was made. 2: wrong usage or input, constraints that nothing keeps,
or a budget that is too small.""",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    is_eager=True,
    expose_value=False,
    callback=read_config,
    help="YAML file with any of these options, or a shipped one's name (choose).",
)
@click.option("--task", help="Shipped name, local folder or file, or Hub name. [rotten_tomatoes]")
@click.option("--model", help="Shipped name, local folder or Hub name. [minilm]")
@click.option(
    "--methods",
    metavar="A,B,...",
    help="The candidates. A spec with brackets is taken as it is; each other method is tried in "
    "two more sizes. "
    "[lora,adapter,ia3,bitfit,parallel,prefix]",
)
@click.option(
    "--weights",
    "--bases",
    "bases",
    metavar="A,B,...",
    help="Weight formats of the base: fp32, bf16, int8, nf4. [fp32]",
)
@click.option("--minutes", type=float, help="The budget of time. [20]")
@click.option("--max-params", metavar="N|N%", help="Trained parameters: 300k, or 1% of the base.")
@click.option("--max-deployed", metavar="N|N%", help="Parameters kept in addition to the base.")
@click.option("--max-memory", metavar="BYTES", help="Peak of a training step: 1.5GB.")
@click.option("--max-infer-memory", metavar="BYTES", help="Peak of a forward pass of eight texts.")
@click.option(
    "--max-latency",
    type=float,
    metavar="RATIO",
    help="Time of a forward pass of one text over the base's: 1.1.",
)
@click.option("--max-disk", metavar="BYTES", help="Size of the saved delta: 500kB.")
@click.option(
    "--must", metavar="A,B,...", help="What the result can do: merge, compose, peft, adapterhub."
)
@click.option("--margin", type=float, help="Points of the score that do not matter. [0.5]")
@click.option("--seed", type=whole, metavar="N", help="Seed of all random numbers. [0]")
@click.option("--metric", help="What scores are, e.g. f1_macro. [what the task usually has]")
@click.option(
    "--kind", help="Kind of a task of your own: `deltakit list kinds`. [what it looks like]"
)
@click.option("--positive", metavar="LABEL", help="The class that F1 is of. [the second]")
@click.option("--text-column", help="Column of the text, where the task is yours. [text]")
@click.option("--pair-column", help="Column of the second text, where there is one.")
@click.option("--label-column", help="Column of the label, where the task is yours. [label]")
@click.option("--label-separator", help="The separator of several labels in one cell.")
@click.option("--compute-dtype", help="What quantised bases compute in.")
@click.option("--max-train-samples", type=amount, metavar="N|all", help="Training examples. [all]")
@click.option(
    "--max-eval-samples",
    type=amount,
    metavar="N|all",
    help="Validation and test examples. [1000; 500 below 15 minutes]",
)
@click.option("--epochs", type=float, help="Passes over the data of the longest training. [3]")
@click.option("--batch-size", type=whole, metavar="N", help="Examples a step. [32]")
@click.option("--max-length", type=whole, metavar="N", help="Tokens an example. [64]")
@import_files
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the choice. [runs/choice-<id>]"
)
def choose(out: Path | None, **options: Any) -> None:
    """Choose a method, its size, its learning rate and its base for a task, within a budget.

    Candidates that break a constraint are ruled out before anything is trained. You can interrupt
    it: the same command continues where it stopped.
    """
    started = time.perf_counter()  # before torch is imported, which takes seconds
    from deltakit.choose.request import choice_request

    request = choice_request(options)
    from rich.console import Console

    from deltakit.choose.api import run_choice
    from deltakit.cli.choice_lines import ChoiceLines

    console = Console()
    lines = ChoiceLines(console)
    lines.answer(run_choice(request, out, lines, started=started))
