"""``deltakit compare``: the main job."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltakit.cli.options import INTERRUPTED, plan_options, request, sized_plans, whole
from deltakit.cli.sections import OptionsInSections

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from deltakit.compare.plan.plan import Plan
    from deltakit.compare.results import Results
    from deltakit.compare.run.engines.base import Engine
    from deltakit.compare.run.failures import Failures
    from deltakit.compare.sizes import ResultsBySize


@click.command(
    cls=OptionsInSections,
    epilog="""\b
Examples:
  deltakit compare --methods adapter,lora,fusion
  deltakit compare --methods "lora[rank=4],lora[rank=16]" --task reviews.csv --seeds 3
  deltakit compare --config configs/quick.yaml --out runs/mine
  deltakit compare --methods lora,ia3 --seeds 5 --engine processes --workers 4

Exit code 0: all cells done. 1: some failed, the table says why. 2: wrong usage or input.""",
)
@plan_options
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Run folder. [runs/<time>-<plan>, or the earlier one of the same command]",
)
@click.option(
    "--engine",
    metavar="NAME",
    help="Where the cells run: processes (a fresh one for each), local (all in this one) or ray. "
    "[processes]",
)
@click.option("--workers", type=whole, metavar="N", help="How many cells run at a time. [1]")
@click.option(
    "--retry-failed/--no-retry-failed", default=False, help="Run cells again that failed. [no]"
)
def compare(
    out: Path | None,
    engine: str | None,
    workers: int | None,
    retry_failed: bool,
    **options: Any,
) -> None:
    """Train and measure methods side by side, and write the tables.

    Three rows are always in the table: the prediction of the most frequent class (majority), the
    task head alone (head) and full fine-tuning (full). You can interrupt it: the same command
    continues where it stopped. Two such commands at the same time share the work.
    """
    from rich.console import Console

    console = Console()
    with console.status("reading data and model"):
        from deltakit.compare.run.engines import engine_for

        place = engine_for(engine, workers)
        by_size = sized_plans(options, place)
        plans = [_plan(options, place)] if by_size is None else list(by_size.values())
        from deltakit.compare.run import distributed
        from deltakit.compare.run.failures import Failures
        from deltakit.compare.run.queue import follow

    if distributed.is_follower():
        for plan in plans:
            follow(plan)
        return
    run = partial(
        _run, console, place=place, failures=Failures.RETRY if retry_failed else Failures.KEEP
    )
    outcome = run(plans[0], out) if by_size is None else _run_sizes(by_size, out, run)
    if outcome.failures:
        console.print("The same command with --retry-failed runs failed cells again.")
        raise SystemExit(1)


def _plan(options: dict[str, Any], place: "Engine") -> "Plan":
    from deltakit.compare.plan.draft import draft_of

    draft = draft_of(request(options))
    # Here everything that a user types has been judged, and what is slow begins.
    place.prepare()
    from deltakit.compare.plan.resolve import complete_plan

    return complete_plan(draft)


def _run(
    console: "Console", plan: "Plan", out: Path | None, place: "Engine", failures: "Failures"
) -> "Results":
    """Runs a plan, and shows its table."""
    from deltakit.cli.live import Live, show
    from deltakit.compare.api import run_plan

    with Live(console) as live:
        try:
            outcome = run_plan(plan, out, live, opened=live.opened, engine=place, failures=failures)
        except KeyboardInterrupt:
            live.interrupted()
            raise SystemExit(INTERRUPTED) from None
    show(console, outcome)
    return outcome


def _run_sizes(
    plans: "dict[int, Plan]", out: Path | None, run: "Callable[[Plan, Path | None], Results]"
) -> "ResultsBySize":
    """Runs the plan of each size, and shows the table over all of them."""
    from deltakit.cli.live import show_sizes
    from deltakit.compare.sizes import ResultsBySize, folders_of

    whole, folders = folders_of(plans, out)
    runs = {size: run(plan, folders[size]) for size, plan in plans.items()}
    outcome = ResultsBySize(folder=whole, runs=runs)
    show_sizes(outcome)
    return outcome
