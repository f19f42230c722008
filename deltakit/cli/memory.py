"""The tables of ``deltakit plan --memory``."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from deltakit.compare.measure.memory_rows import MemoryQuestion, MemoryRow
    from deltakit.compare.plan.request import Request

KINDS = {
    "base": "base",
    "delta": "delta",
    "gradients": "gradients",
    "optimizer": "optimiser",
    "activations": "activations",
    "training_peak": "training peak",
    "inference_peak": "inference peak",
    "deployed": "deployed",
}
"""The columns by the fields of `PredictedMemory`."""
UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show_memory(request: "Request", checkpointing: bool | None, as_json: bool) -> None:
    """Prints the predicted memory of a request's rows."""
    from deltakit.compare.measure.memory_rows import memory_question, memory_rows

    question = memory_question(request, checkpointing)
    rows = list(memory_rows(request, question))
    if as_json:
        click.echo(_as_json(question, rows))
        return
    click.echo(_table(rows))
    for line in dict.fromkeys(row.reason for row in rows if row.reason):
        click.echo(f"\n{line}")
    load = question.loads[0]
    texts = question.head.reads == "texts"
    each = f"× {load.max_length} tokens" if texts else question.head.reads
    click.echo(
        f"\n{question.model.name}, to {question.head.purpose}: batches of {load.batch_size} "
        f"{each}. No weights were read; --json has exact bytes."
    )


def _table(rows: "Iterable[MemoryRow]") -> str:
    from tabulate import tabulate

    lines = [
        (
            row.method,
            row.base,
            "yes" if row.gradient_checkpointing else "no",
            *("–" if row.memory is None else size(vars(row.memory)[kind]) for kind in KINDS),
        )
        for row in rows
    ]
    headers = ("method", "base", "check-\npointed", *(_folded(name) for name in KINDS.values()))
    align = ("left", "left", "left", *("right" for _ in KINDS))
    return tabulate(lines, headers, colalign=align, disable_numparse=True)


def _folded(name: str) -> str:
    return name.replace(" ", "\n")


def size(number: float) -> str:
    """Bytes in the unit that has one to four digits before the point."""
    unit = 0
    while number >= 1024 and unit < len(UNITS) - 1:
        number, unit = number / 1024, unit + 1
    return f"{number:.0f} B" if unit == 0 else f"{number:.2f} {UNITS[unit]}"


def _as_json(question: "MemoryQuestion", rows: "Iterable[MemoryRow]") -> str:
    import dataclasses
    import json

    load = question.loads[0]
    content: dict[str, Any] = {
        "model": question.model.name,
        "task": question.head.task,
        "batch_size": load.batch_size,
        "max_length": load.max_length,
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    return json.dumps(content, indent=2)
