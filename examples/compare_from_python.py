"""Compare methods from Python: a request, a plan, a run, its rows.

    python examples/compare_from_python.py

It does what `deltakit compare --methods bitfit,lora[rank=4] --model ... --task ...` does. The run
folder also holds results.csv and report.html; the same request goes on where a run stopped.
"""

import tempfile
from pathlib import Path

from tiny import make_model, make_tokenizer, write_reviews

from deltakit.compare.api import run_plan
from deltakit.compare.plan.request import Budget, Request
from deltakit.compare.plan.resolve import build_plan


def main(folder: Path) -> None:
    """Makes a model and a task, and compares two methods on them."""
    make_model().save_pretrained(folder / "model")
    make_tokenizer().save_pretrained(folder / "model")
    request = Request(
        methods=("bitfit", "lora[rank=4]"),
        model=str(folder / "model"),
        task=str(write_reviews(folder / "reviews.csv", rows=60)),
        budget=Budget(epochs=2, batch_size=16, max_length=16, lr=1e-2),
    )
    plan = build_plan(request)
    print(f"{len(plan.cells)} cells: {', '.join(cell.label for cell in plan.cells)}")

    done = run_plan(plan, folder / "run")
    for row in done.results:
        score = f"{row.score:.3f} [{row.score_low:.3f}, {row.score_high:.3f}]"
        print(f"{row.method:14} {score}  trained parameters: {row.trained_params}")
    print(f"and {', '.join(sorted(path.name for path in done.folder.glob('*.*')))}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
