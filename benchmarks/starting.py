"""How soon a command gives its first answer, in a fresh process.

    python benchmarks/starting.py                        # about two minutes on two cores
    python benchmarks/starting.py --runs 9
    python benchmarks/starting.py --beside v0.1.0        # a second checkout, run in turn
    python benchmarks/starting.py --only compare

Every command is run once to warm the file cache, and then `--runs` times. With `--beside REF` the
package as it was at that commit is exported to a temporary folder, and the two take turns, so a
machine that slows down slows down both. The table has the lowest and the median wall time, and the
processor's time of the median run. The last rows are what Python, torch and a model of transformers
take to import without deltakit: no command that uses them can be faster.
"""

import argparse
import io
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

HERE = Path(__file__).resolve().parents[1]

DELTAKIT = (
    "--version",
    "--help",
    "methods",
    "cite lora",
    "compare --methods adaptr",
    "compare --methods lora[rnk=4]",
    "compare --methods lora[rank=0]",
    "compare --methods lora --bases fp7",
    "compare --methods lora --task nosuchtask",
    "compare --methods lora --task data.csv --text-column txet",
    "compare --methods lora --epochs 0",
    "sites minilm",
    "summary minilm --method lora",
    "plan --methods lora",
)
"""Commands of deltakit, each split at spaces."""

LIBRARIES = {
    "(python)": "pass",
    "(torch)": "import torch",
    "(a model of transformers)": "from transformers import BertForSequenceClassification",
}
"""Code without deltakit, under the name of its row."""

Times = list[tuple[float, float]]
"""Wall time and processor time of each run, in seconds."""


def timed(arguments: list[str], root: Path, folder: Path) -> tuple[float, float]:
    """Seconds of one fresh interpreter: wall time, processor time."""
    environment = {**os.environ, "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, check=False
    )
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def exported(ref: str, folder: Path) -> Path:
    """The package as it was at a commit."""
    packed = subprocess.run(
        ["git", "archive", ref, "deltakit", "configs"], cwd=HERE, capture_output=True, check=True
    )
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def measured(arguments: list[str], roots: list[Path], folder: Path, runs: int) -> list[Times]:
    """The times of a command in each checkout, which take turns."""
    times: list[Times] = [[] for _ in roots]
    for turn in range(runs + 1):
        for root, own in zip(roots, times, strict=True):
            found = timed(arguments, root, folder)
            if turn:  # the first one warms the file cache
                own.append(found)
    return times


def shown(times: Times) -> list[str]:
    """The lowest and the median wall time, and the processor's time of the median run."""
    walls = sorted(times)
    median = walls[len(walls) // 2]
    return [
        f"{walls[0][0]:.2f}",
        f"{statistics.median(wall for wall, _ in walls):.2f}",
        f"{median[1]:.2f}",
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each command [5]")
    parser.add_argument("--beside", metavar="REF", help="a commit to measure in turn with this")
    parser.add_argument("--only", default="", help="only commands with this text in them")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "work"
        folder.mkdir()
        (folder / "data.csv").write_text("text,label\ngood,yes\nbad,no\n", encoding="utf-8")
        roots = [HERE]
        if asked.beside:
            roots.append(exported(asked.beside, Path(place) / "beside"))
        commands = {each: ["-m", "deltakit", *each.split()] for each in DELTAKIT}
        commands |= {name: ["-c", code] for name, code in LIBRARIES.items()}
        rows = []
        for name, arguments in commands.items():
            if asked.only in name:
                times = measured(arguments, roots, folder, asked.runs)
                rows.append([name, *(cell for each in times for cell in shown(each))])
                print(f"  {name}", file=sys.stderr)
    columns = ("lowest", "median", "processor")
    before = [f"{column}, {asked.beside}" for column in columns] if asked.beside else []
    print(tabulate(rows, ("seconds", *columns, *before), disable_numparse=True))


if __name__ == "__main__":
    main()
