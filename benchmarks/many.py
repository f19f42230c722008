"""Many deltas on one base: time and memory of each action, next to so many others.

    python benchmarks/many.py                       # about two minutes
    python benchmarks/many.py --numbers 500 1000

LoRAs of rank 8 at queries and values of a model of MiniLM's size. Attaching and detaching are for
all of them; the other times are for one.
"""

import argparse
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from beside_peft import bert
from tabulate import tabulate

import deltakit as dk


def seconds(action: Callable[[], Any]) -> float:
    """The time of one call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def each_ms(action: Callable[[int], Any], numbers: range) -> str:
    """The median time of an action with one of the deltas, in milliseconds."""
    return f"{1e3 * statistics.median(seconds(lambda n=n: action(n)) for n in numbers):.1f}"


def line(number: int, folder: Path) -> list[str]:
    """The row of so many deltas."""
    model, some = bert(), range(0, number, max(1, number // 20))

    def attach() -> None:
        for index in range(number):
            dk.attach(model, dk.LoRA(rank=8), name=f"d{index}")

    attached = seconds(attach)
    parameters = sum(p.nbytes for p in model.deltakit.parameters())
    tracemalloc.start()
    dk.attach(model, dk.LoRA(rank=8), name="more")
    python = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    cells = [
        each_ms(lambda n: dk.activate(model, f"d{n}"), some),
        each_ms(lambda n: dk.save(model, folder / f"{n}", name=f"d{n}"), some),
        each_ms(lambda n: dk.load(model, folder / f"{n}", name=f"again{n}"), some),
    ]
    detached = seconds(lambda: dk.detach(model))
    sizes = (parameters / number, python)
    return [
        str(number),
        f"{attached:.1f}",
        *cells,
        f"{detached:.2f}",
        *(f"{size / 1024:.0f}" for size in sizes),
    ]


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, nargs="*", default=[250, 500, 1000])
    numbers = parser.parse_args().numbers
    torch.manual_seed(0)
    line(2, Path(tempfile.mkdtemp()))  # imports and caches
    table = [line(number, Path(tempfile.mkdtemp())) for number in numbers]
    headers = (
        "deltas",
        "attach all, s",
        "activate, ms",
        "save, ms",
        "load, ms",
        "detach all, s",
        "parameters of one, KiB",
        "Python's objects of one, KiB",
    )
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
