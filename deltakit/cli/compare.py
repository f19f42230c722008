"""``deltakit compare``: the main job."""

from pathlib import Path
from typing import Any

import click

from deltakit.cli.options import plan_options, request


@click.command(
    epilog="""\b
Examples:
  deltakit compare --methods adapter,lora,fusion
  deltakit compare --methods "lora[rank=4],lora[rank=16]" --task reviews.csv --seeds 3
  deltakit compare --config configs/quick.yaml --out runs/mine

Exit code 0: all cells done. 1: some failed, the table says why. 2: wrong usage or input."""
)
@plan_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder. [runs/<time>-<plan>, or the earlier one of the same command]",
)
def compare(out: Path | None, **options: Any) -> None:
    """Train and measure methods side by side, and write the tables.

    The majority class, head-only training and full fine-tuning are always rows of the table.
    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    from rich.console import Console

    from deltakit.cli.live import Live, show

    console = Console()
    with console.status("reading data and model"):
        from deltakit.compare.plan import resolve
        from deltakit.compare.run import run_plan

        plan = resolve(request(options))
    with Live(console) as live:
        try:
            outcome = run_plan(plan, out, live, opened=live.opened)
        except KeyboardInterrupt:
            live.interrupted()
            raise
    show(console, outcome)
    if outcome.failures:
        raise SystemExit(1)
