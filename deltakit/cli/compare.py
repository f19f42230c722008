"""``deltakit compare``: the main job."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deltakit.cli.options import plan_options, request, sizes, whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from deltakit.compare.api import Results
    from deltakit.compare.plan.draft import Draft
    from deltakit.compare.plan.plan import Plan
    from deltakit.compare.run.engines.base import Engine
    from deltakit.compare.run.failures import Failures


@click.command(
    epilog="""\b
Examples:
  deltakit compare --methods adapter,lora,fusion
  deltakit compare --methods "lora[rank=4],lora[rank=16]" --task reviews.csv --seeds 3
  deltakit compare --config configs/quick.yaml --out runs/mine
  deltakit compare --methods lora,ia3 --seeds 5 --engine processes --workers 4

Exit code 0: all cells done. 1: some failed, the table says why. 2: wrong usage or input."""
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
    "--train-sizes",
    type=sizes,
    metavar="N,N,...",
    help="Compare at several numbers of training examples, and draw scores over them.",
)
@click.option(
    "--retry-failed/--no-retry-failed", default=False, help="Run cells again that failed. [no]"
)
def compare(
    out: Path | None,
    engine: str | None,
    workers: int | None,
    train_sizes: tuple[int, ...] | None,
    retry_failed: bool,
    **options: Any,
) -> None:
    """Train and measure methods side by side, and write the tables.

    The majority class, head-only training and full fine-tuning are always rows of the table.
    Interrupt it whenever you like: the same command goes on where it stopped. Run it twice at the
    same time, and the two share the work.
    """
    from rich.console import Console

    console = Console()
    with console.status("reading data and model"):
        from deltakit.compare.run.engines import engine_for

        place = engine_for(engine, workers)
        plans = _plans(options, train_sizes, place)
        from deltakit.compare.run import distributed
        from deltakit.compare.run.failures import Failures
        from deltakit.compare.run.queue import follow
        from deltakit.compare.sizes import folders_of

    folders: dict[int | None, Path | None] = {None: out}
    if train_sizes is not None:
        whole_folder, by_size = folders_of(
            {size: plan for size, plan in plans.items() if size is not None}, out
        )
        folders = dict(by_size.items())
    if distributed.is_follower():
        for plan in plans.values():
            follow(plan)
        return
    failures = Failures.RETRY if retry_failed else Failures.KEEP
    outcomes = {
        size: _run(console, plan, folders[size], place, failures) for size, plan in plans.items()
    }
    if train_sizes is not None:
        _show_sizes(whole_folder, outcomes)
    if any(outcome.failures for outcome in outcomes.values()):
        console.print("The same command with --retry-failed runs failed cells again.")
        raise SystemExit(1)


def _plans(
    options: dict[str, Any], train_sizes: "Sequence[int] | None", place: "Engine"
) -> "dict[int | None, Plan]":
    """The plan, or one for each number of training examples, the smallest first."""
    from deltakit.compare.plan.draft import draft_of

    asked = request(options)
    if train_sizes is None:
        drafts: dict[int | None, Draft] = {None: draft_of(asked)}
    else:
        from deltakit.compare.sizes import check_enough, check_sizes, sized

        drafts = {size: draft_of(sized(asked, size)) for size in check_sizes(train_sizes, options)}
        for size, draft in drafts.items():
            check_enough(draft, size or 0)
    # Here everything that a user types has been judged, and what is slow begins.
    place.prepare()
    from deltakit.compare.plan.resolve import complete_plan

    return {size: complete_plan(draft) for size, draft in drafts.items()}


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
            raise
    show(console, outcome)
    return outcome


def _show_sizes(folder: Path, outcomes: "dict[int | None, Results]") -> None:
    from deltakit.compare.sizes import write_sizes

    runs = {size: outcome for size, outcome in outcomes.items() if size is not None}
    click.echo(write_sizes(folder, runs))
    click.echo(f"{folder}/sizes.md, sizes.csv, sizes.png and sizes.svg have it over all sizes")
