"""One comparison at several amounts of training data.

Each amount is a run of its own, in a folder of its own, with its own statistics. The examples of a
smaller run are among those of a larger one. The test split is the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit._files import atomic_path, write_text
from deltakit.compare.plan.plan import Plan, content_id
from deltakit.compare.report.sizes import sizes_md, sizes_plot
from deltakit.compare.report.summary import metric_of
from deltakit.compare.report.tables import results_csv
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from deltakit.compare.api import Results
    from deltakit.compare.plan.draft import Draft
    from deltakit.compare.plan.request import Request


def check_sizes(sizes: Sequence[int], asked: Mapping[str, Any]) -> tuple[int, ...]:
    """The sizes, the smallest first.

    Args:
        sizes: numbers of training examples.
        asked: the other options of the command.

    Raises:
        InvalidConfig: a size twice, or a limit of training examples in addition to them.
    """
    if len(set(sizes)) < len(sizes):
        raise InvalidConfig(f"--train-sizes {_listed(sizes)} has a size twice. Leave one out.")
    if asked.get("max_train_samples") is not None:
        raise InvalidConfig(
            "--train-sizes and --max-train-samples exclude each other: each size is such a limit. "
            "Leave one out."
        )
    return tuple(sorted(sizes))


def sized(request: Request, size: int) -> Request:
    """The request with another number of training examples."""
    budget = dataclasses.replace(request.budget, max_train_samples=size)
    return dataclasses.replace(request, budget=budget)


def check_enough(draft: Draft, size: int) -> None:
    """Raises `InvalidConfig` where the task has fewer training examples."""
    found = len(draft.target.train)
    if found < size:
        raise InvalidConfig(
            f"--train-sizes {size}: the task {draft.target.name!r} has {found:,} training "
            "examples. Give sizes up to that number."
        )


def folders_of(plans: Mapping[int, Plan], out: Path | None) -> tuple[Path, dict[int, Path]]:
    """The folder of everything, and the run folder of each size in it.

    Without `out` it is one under ``runs`` that the plans name, so the same command finds it again.
    """
    name = content_id([plan.id for plan in plans.values()])
    whole = out or Path("runs") / f"sizes-{name}"
    return whole, {size: whole / f"train-{size}" for size in plans}


def write_sizes(folder: Path, runs: Mapping[int, Results]) -> str:
    """Writes ``sizes.md``, ``sizes.csv``, ``sizes.png`` and ``sizes.svg``; returns the table.

    Args:
        folder: of everything.
        runs: the results by size, the smallest first.
    """
    largest = list(runs.values())[-1]
    metric = metric_of(largest.results)
    by_size = {size: each.summaries() for size, each in runs.items()}
    table = sizes_md(by_size, metric, largest.run.role("floor") or "")
    plot = sizes_plot(by_size, metric, largest.run.task.name)
    write_text(folder / "sizes.md", table)
    write_text(folder / "sizes.csv", _csv(runs))
    write_text(folder / "sizes.svg", plot.svg)
    with atomic_path(folder / "sizes.png") as temporary:
        temporary.write_bytes(plot.png)
    return table


def _csv(runs: Mapping[int, Results]) -> str:
    """The rows of all runs, with the size in front."""
    lines: list[str] = []
    for size, each in runs.items():
        header, *rows = results_csv(each.results).splitlines()
        lines += [] if lines else [f"train_size,{header}"]
        lines += [f"{size},{row}" for row in rows]
    return "\n".join(lines) + "\n"


def _listed(sizes: Sequence[int]) -> str:
    return ",".join(map(str, sizes))
