"""MTEB on a tiny encoder and a task class of a user's file."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltakit.compare.store.run_folder import RunFolder

pytest.importorskip("mteb")
pytestmark = pytest.mark.filterwarnings("default")

TASK = """
import csv
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification
from mteb.abstasks.task_metadata import TaskMetadata

def rows(split):
    with open(rf"FOLDER/{split}.csv", newline="") as file:
        found = list(csv.DictReader(file))
    labels = [int(row["label"] == "pos") for row in found]
    return Dataset.from_dict({"text": [row["text"] for row in found], "label": labels})

class TinySentiment(AbsTaskClassification):
    metadata = TaskMetadata(
        name="TinySentiment", description="words", type="Classification",
        eval_langs=["eng-Latn"], main_score="accuracy",
        dataset={"path": "here", "revision": "1"},
    )
    n_experiments = 3

    def load_data(self, num_proc=None, **kwargs):
        self.dataset = DatasetDict(train=rows("train"), test=rows("test"))
        self.data_loaded = True
"""


def test_scores_differ_by_row_and_not_by_merging(
    finished: Any, tasks: Any, tmp_path: Path, deltakit: Callable[..., Any]
) -> None:
    run = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    (tmp_path / "tiny_task.py").write_text(TASK.replace("FOLDER", str(tasks.two)))
    asked = (
        "evaluate", run, "--with", "mteb", "--tasks", "TinySentiment",
        "--import", tmp_path / "tiny_task.py",
    )  # fmt: skip
    assert (ended := deltakit(*asked)).code == 0, ended
    assert (ended := deltakit(*asked, "--rows", "head,lora", "--merged")).code == 0, ended
    folder = RunFolder(run)
    found = {
        (cell.method, each.merged): (f"{each.value:.4f}", f"{each.stderr:.4f}")
        for cell in folder.run_record().plan.cells
        for each in folder.verdicts(cell.id)
    }
    assert found["lora", False] == found["lora", True] != found["head", False]
    assert found["head", False] == found["head", True]
    assert ("adapter", False) in found and ("fusion", False) in found
