"""One comparison at several amounts of training data.

Each amount is a run of its own, in a folder of its own, with its own statistics. The examples of a
smaller run are among those of a larger one. The test split is the same.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit._files import atomic_path, write_text
from deltakit.compare.plan.plan import Plan, content_id
from deltakit.compare.report.sizes import BySize, sizes_html, sizes_md, sizes_page, sizes_plot
from deltakit.compare.report.summary import metric_of
from deltakit.compare.report.tables import results_csv
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    import pandas as pd

    from deltakit.compare.plan.draft import Draft
    from deltakit.compare.plan.request import Request
    from deltakit.compare.records.result import CellResult
    from deltakit.compare.results import Results
    from deltakit.compare.run.engines import Engine

RUN = "train-"
"""The run folder of 50 examples is ``train-50``."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ResultsBySize:
    """A comparison at several amounts of training data that has ended.

    Attributes:
        folder: of everything; ``report.html`` and the run folders are in it.
        runs: the results by the number of training examples, the fewest first.
    """

    folder: Path
    runs: Mapping[int, Results]

    @property
    def failures(self) -> tuple[CellResult, ...]:
        """The cells that failed, of all runs."""
        return tuple(cell for each in self.runs.values() for cell in each.failures)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a cell, with the columns of ``sizes.csv``."""
        return _stacked({size: each.frame for size, each in self.runs.items()})

    @property
    def table(self) -> pd.DataFrame:
        """One row a size, method and base, over its seeds, with scores as people read them."""
        return _stacked({size: each.table for size, each in self.runs.items()})

    @property
    def page(self) -> Path:
        """The page with the table and the plot."""
        return self.folder / "report.html"

    def summaries(self) -> BySize:
        """The rows of each run's table."""
        return {size: each.summaries() for size, each in self.runs.items()}

    @property
    def largest(self) -> Results:
        """The run with the most examples."""
        return list(self.runs.values())[-1]

    def __repr__(self) -> str:
        table = sizes_md(self.summaries(), *_metric_and_floor(self))
        return f"{table}\n{self.page} has the plot"

    def _repr_html_(self) -> str:
        return sizes_html(self.summaries(), *_metric_and_floor(self))


def _stacked(frames: Mapping[int, pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    named = [frame.assign(train_size=size) for size, frame in frames.items()]
    whole = pd.concat(named, ignore_index=True)
    return whole[["train_size", *(name for name in whole.columns if name != "train_size")]]


# --------------------------------------------------------------------------------------- the plans


def plans_by_size(
    request: Request,
    sizes: Sequence[int],
    asked: Mapping[str, Any],
    equal_steps: bool = False,
    place: Engine | None = None,
) -> dict[int, Plan]:
    """A plan for each size, the smallest first. All are planned before the first one trains.

    Args:
        request: for any size.
        sizes: numbers of training examples.
        asked: the other options of the command.
        equal_steps: whether each size is trained for as many steps as the largest one.
        place: prepared for the plans where it is given.

    Raises:
        DeltakitError: whatever is wrong with one of them.
    """
    from deltakit.compare.plan.draft import draft_of
    from deltakit.compare.plan.resolve import complete_plan

    ordered = check_sizes(sizes, asked)
    largest = ordered[-1] if equal_steps else None
    drafts = {size: draft_of(sized(request, size, largest)) for size in ordered}
    for size, draft in drafts.items():
        check_enough(draft, size)
        check_epochs(draft, equal_steps)
    if place is not None:
        place.prepare()
    return {size: complete_plan(draft) for size, draft in drafts.items()}


def check_sizes(sizes: Sequence[int], asked: Mapping[str, Any]) -> tuple[int, ...]:
    """The sizes, the smallest first.

    Args:
        sizes: numbers of training examples.
        asked: the other options of the command.

    Raises:
        InvalidConfig: no size, one that is no number above zero, a size twice, or a limit of
            training examples in addition to them.
    """
    if not sizes or any(type(size) is not int or size < 1 for size in sizes):
        raise InvalidConfig(
            f"--train-sizes {_listed(sizes)!r}: give whole numbers above zero, as in 100,500,2000."
        )
    if len(set(sizes)) < len(sizes):
        raise InvalidConfig(f"--train-sizes {_listed(sizes)} has a size twice. Leave one out.")
    if asked.get("max_train_samples") is not None:
        raise InvalidConfig(
            "--train-sizes and --max-train-samples exclude each other: each size is such a limit. "
            "Leave one out."
        )
    return tuple(sorted(sizes))


def check_curve(sizes: Sequence[int] | None, equal_steps: bool | None) -> None:
    """Raises `InvalidConfig` for equal steps without sizes."""
    if equal_steps and sizes is None:
        raise InvalidConfig(
            "--equal-steps is for several sizes: give --train-sizes too, as in 100,500,2000."
        )


def sized(request: Request, size: int, largest: int | None = None) -> Request:
    """The request with another number of training examples.

    Args:
        request: for any size.
        size: the number of training examples.
        largest: the size whose number of steps is taken; None is that of `size` itself.
    """
    budget = dataclasses.replace(request.budget, max_train_samples=size)
    if largest is not None:
        batches, most = (math.ceil(each / budget.batch_size) for each in (size, largest))
        steps = max(1, math.ceil(most * budget.epochs))
        budget = dataclasses.replace(budget, epochs=_epochs(steps, batches))
    return dataclasses.replace(request, budget=budget)


def _epochs(steps: int, batches: int) -> float:
    """The most passes over so many batches that have no more than so many steps."""
    epochs = steps / batches
    return epochs if batches * epochs <= steps else math.nextafter(epochs, 0)


def check_enough(draft: Draft, size: int) -> None:
    """Raises `InvalidConfig` where the task has fewer training examples."""
    found = len(draft.target.train)
    if found < size:
        raise InvalidConfig(
            f"--train-sizes {size}: the task {draft.target.name!r} has {found:,} training "
            "examples. Give sizes up to that number."
        )


def check_epochs(draft: Draft, equal_steps: bool) -> None:
    """Raises `InvalidConfig` for a row with epochs of its own among equal steps."""
    if equal_steps and draft.epochs:
        label, epochs = next(iter(draft.epochs.items()))
        raise InvalidConfig(
            f"--equal-steps and the {epochs:g} epochs of the row {label!r} exclude each other: "
            "steps are as many for every row. Leave one out."
        )


# ------------------------------------------------------------------------------------- the folders


def folders_of(plans: Mapping[int, Plan], out: Path | None) -> tuple[Path, dict[int, Path]]:
    """The folder of everything, and the run folder of each size in it.

    Without `out` it is one under ``runs`` that the plans name, so the same command finds it again.
    """
    name = content_id([plan.id for plan in plans.values()])
    whole = out or Path("runs") / f"sizes-{name}"
    return whole, {size: whole / f"{RUN}{size}" for size in plans}


def sizes_in(folder: Path) -> dict[int, Path]:
    """The run folders of a folder of sizes, the smallest first; none in any other folder."""
    found = {each.name.removeprefix(RUN): each for each in folder.glob(f"{RUN}*") if each.is_dir()}
    numbers = {int(size): path for size, path in found.items() if size.isdecimal()}
    return dict(sorted(numbers.items()))


def write_sizes(results: ResultsBySize) -> str:
    """Writes ``report.html``, ``sizes.md``, ``.csv``, ``.png`` and ``.svg``; returns the table."""
    metric, floor = _metric_and_floor(results)
    run, folder, by_size = results.largest.run, results.folder, results.summaries()
    table = sizes_md(by_size, metric, floor)
    plot = sizes_plot(by_size, metric, run.task.name)
    answers = {size: each.answer for size, each in results.runs.items()}
    title = " · ".join(part for part in (run.task.name, run.model.name) if part)
    page = sizes_page(by_size, metric, floor, title=title, answers=answers, svg=plot.svg)
    for name, text in (
        ("sizes.md", table),
        ("sizes.csv", _csv(results.runs)),
        ("sizes.svg", plot.svg),
        ("report.html", page),
    ):
        write_text(folder / name, text)
    with atomic_path(folder / "sizes.png") as temporary:
        temporary.write_bytes(plot.png)
    return table


def _metric_and_floor(results: ResultsBySize) -> tuple[Any, str]:
    largest = results.largest
    return metric_of(largest.results), largest.run.role("floor") or ""


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
