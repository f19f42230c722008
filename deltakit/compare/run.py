"""Running a plan: every cell that is not finished yet, then the reports."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deltakit.compare.cell import MEASURE_UNITS, Workshop, clean_up, failed, run_cell, units
from deltakit.compare.metrics import METRICS
from deltakit.compare.page import Insights
from deltakit.compare.plan import CONSTANT, FULL_PRECISION, Cell, Plan
from deltakit.compare.progress import Progress, Silent
from deltakit.compare.report import write_reports
from deltakit.compare.schema import CellResult, Predictions
from deltakit.compare.store import RunFolder, open_run

PACKAGES = (
    "deltakit-peft",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "datasets",
    "scikit-learn",
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A run that has ended.

    Attributes:
        folder: the run folder.
        results: every cell's row, in the plan's order.
        predictions: per-example predictions by (method, base, seed).
        run: what ``run.json`` says.
        reused: how many cells an earlier run had finished.
    """

    folder: Path
    results: tuple[CellResult, ...]
    predictions: dict[tuple[str, str, int], Predictions]
    run: dict[str, Any]
    reused: int

    @property
    def failures(self) -> tuple[CellResult, ...]:
        """The cells that failed."""
        return tuple(result for result in self.results if result.status == "failed")


def run_plan(
    plan: Plan,
    out: Path | None = None,
    progress: Progress | None = None,
    *,
    opened: Callable[[Path], None] | None = None,
) -> Outcome:
    """Runs what is left of a plan and writes the reports.

    A cell that fails is recorded with its reason and the others go on. An interrupt leaves every
    finished cell in the folder; the same call goes on from there.

    Args:
        plan: what `resolve` returned.
        out: the run folder; by default one under ``runs``.
        progress: told what happens.
        opened: called with the run folder as soon as it is known.

    Raises:
        InvalidConfig: `out` is not this plan's.
    """
    _quiet()
    progress = progress or Silent()
    folder = open_run(plan, out, describe(plan))
    if opened is not None:
        opened(folder.path)
    left = [(cell, first) for cell, first in plan.stages() if not folder.finished(cell.id)]
    reused = len(plan.cells) - len(left)
    shop = Workshop(plan=plan, folder=folder, progress=progress)
    progress.begin(sum(_units(plan, cell, first) for cell, first in left), reused)
    for cell, first in left:
        _run_one(shop, cell, _units(plan, cell, first))
    return collect(folder, reused=reused)


def _units(plan: Plan, cell: Cell, first: tuple[Any, ...]) -> int:
    if cell.training is None:
        return 1
    return MEASURE_UNITS + sum(units(plan, training) for training in (*first, cell.training))


def _run_one(shop: Workshop, cell: Cell, total: int) -> None:
    title = cell.label
    if len(shop.plan.request.bases) > 1:
        title += f" on {cell.base}"
    if shop.plan.request.seeds > 1:
        title += f", seed {cell.seed}"
    shop.progress.start(title, total)
    start = time.perf_counter()
    predictions: Predictions | None = None
    try:
        result, predictions = run_cell(shop, cell)
    except Exception as error:  # a failed cell is a result; KeyboardInterrupt is not caught
        result = failed(cell, error)
    shop.folder.write(cell, result, predictions)
    took = time.perf_counter() - start
    shop.progress.finish(
        f"failed: {result.reason}"
        if result.score is None
        else f"{METRICS.get(shop.plan.task.metric).said(result.score)} in {took:.0f} s"
    )
    clean_up()


def report_folder(path: Path) -> Outcome:
    """Writes the reports of a run folder anew, from its cells.

    Raises:
        InvalidConfig: it is no run folder.
    """
    return collect(RunFolder(path), reused=0)


def collect(folder: RunFolder, *, reused: int) -> Outcome:
    """Reads what the folder holds, in the plan's order, and writes the reports."""
    run = folder.description()
    ids = [cell["id"] for cell in run["plan"]["cells"]]
    stored = {each: result for each in ids if (result := folder.result(each)) is not None}
    predictions = {
        (result.method, result.base, result.seed): found
        for each, result in stored.items()
        if result.status == "done" and (found := folder.predictions(each)) is not None
    }
    results = tuple(stored.values())
    write_reports(folder.path, results, predictions, run, _insights(folder, stored))
    return Outcome(
        folder=folder.path, results=results, predictions=predictions, run=run, reused=reused
    )


def _insights(folder: RunFolder, stored: Mapping[str, CellResult]) -> Insights:
    """What the folder holds beside its finished cells."""
    done = {
        each: (row.method, row.base, row.seed)
        for each, row in stored.items()
        if row.status == "done"
    }
    searches = {key: folder.search(each) for each, key in done.items()}
    found = {key: folder.diagnostics(each) for each, key in done.items()}
    return Insights(
        searches={key: choice for key, choice in searches.items() if choice is not None},
        found={key: inside for key, inside in found.items() if inside},
    )


def describe(plan: Plan) -> dict[str, Any]:
    """What ``run.json`` says: the resolved plan, versions, machine, fingerprints."""
    task = plan.task
    return {
        "plan": {
            **dataclasses.asdict(plan.request),
            "cells": [
                {
                    "id": cell.id,
                    "method": cell.label,
                    "base": cell.base,
                    "seed": cell.seed,
                    "rates": None if cell.training is None else list(cell.training.rates),
                    "config": None if cell.training is None else repr(cell.training.method),
                }
                for cell in plan.cells
            ],
        },
        "roles": dict(plan.roles),
        "constant": CONSTANT,
        "full_precision": FULL_PRECISION if FULL_PRECISION in plan.request.bases else None,
        "model": {"name": plan.model.name, "fingerprint": plan.model.fingerprint},
        "tasks": {
            name: {
                "fingerprint": data.fingerprint,
                "kind": data.kind.name,
                "labels": list(data.labels),
                "train": len(data.train),
                "validation": len(data.validation),
                "test": len(data.test),
            }
            for name, data in plan.tasks.items()
        },
        "task": {"name": task.name, "metric": task.metric, "citation": task.citation},
        "notes": [
            *(f"{data.name}: {note}" for data in plan.tasks.values() for note in data.notes),
            *plan.notes,
        ],
        "versions": {name: _version(name) for name in PACKAGES},
        "machine": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _quiet() -> None:
    """The libraries' progress bars and load reports would tear the comparison's own display."""
    import datasets
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
