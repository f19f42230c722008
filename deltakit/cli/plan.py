"""``deltakit plan``: a comparison's cells and counts, before anything is trained."""

from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from deltakit.cli.options import plan_options, request, sized_plans
from deltakit.cli.sections import OptionsInSections

if TYPE_CHECKING:
    from deltakit.compare.plan.plan import Plan


@click.command(
    cls=OptionsInSections,
    epilog="""\b
Examples:
  deltakit plan --methods lora,adapter --seeds 3
  deltakit plan --memory --methods lora --model config.json""",
)
@plan_options
@click.option(
    "--memory",
    is_flag=True,
    help="The bytes that each row needs, from the model's config alone, which --model may name.",
)
@click.option(
    "--gradient-checkpointing/--no-gradient-checkpointing",
    default=None,
    help="With --memory: only rows with it, or only rows without. [both]",
)
@click.option("--json", "as_json", is_flag=True, help="With --memory: print exact bytes as JSON.")
def plan(memory: bool, gradient_checkpointing: bool | None, as_json: bool, **options: Any) -> None:
    """Show what `deltakit compare` with the same options would run, and what each row trains."""
    if memory:
        from deltakit.cli.memory import show_memory

        show_memory(request(options), gradient_checkpointing, as_json)
    elif as_json or gradient_checkpointing is not None:
        raise click.UsageError("--json and --gradient-checkpointing are for --memory; add it.")
    else:
        _show_cells(options)


def _show_cells(options: dict[str, Any]) -> None:
    by_size = sized_plans(options)
    if by_size is not None:
        for plan in by_size.values():
            _show_plan(plan)
        return
    from deltakit.compare.plan.draft import draft_of

    draft = draft_of(request(options))
    from deltakit.compare.plan.resolve import complete_plan

    _show_plan(complete_plan(draft))


def _show_plan(resolved: "Plan") -> None:
    import copy

    from tabulate import tabulate

    from deltakit.compare.plan.plan import attach_all, given_folder
    from deltakit.compare.run.cell import step_count

    skeleton = resolved.model.skeleton(resolved.task.kind.head)
    rows: list[tuple[object, ...]] = []
    for cell, first in resolved.stages():
        if cell.training is None:
            rows.append((cell.label, cell.base, cell.seed, "–", "–", "–", "–", "–"))
            continue
        counted = attach_all(copy.deepcopy(skeleton), cell.training, given_folder).counts()
        before = Counter((training.task, step_count(resolved, training)) for training in first)
        rows.append(
            (
                cell.label,
                cell.base,
                cell.seed,
                " ".join(f"{rate:g}" for rate in cell.training.rates),
                step_count(resolved, cell.training),
                ", ".join(_times(n, f"{task} ({u})") for (task, u), n in before.items()) or "–",
                f"{counted.trained_params:,}",
                f"{counted.trained_pct:.3f}",
            )
        )
    headers = ("method", "base", "seed", "lr", "steps", "before it (steps)", "trained", "% of base")
    align = ("left", "left", "right", "right", "right", "left", "right", "right")
    click.echo(tabulate(rows, headers, colalign=align, disable_numparse=True))
    task = resolved.task
    click.echo(
        f"\n{task.name}: {len(task.train)} training and {len(task.test)} test examples, "
        f"{task.kind.description}, {task.metric}. Plan {resolved.id}."
    )


def _times(number: int, what: str) -> str:
    return what if number == 1 else f"{number} × {what}"
