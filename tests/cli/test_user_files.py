"""A method, a metric, a task and a kind of a user's file, by ``--import``."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltakit import _imports
from deltakit.compare.stats.metrics import METRICS

pytestmark = pytest.mark.usefixtures("forgets_imports")

FILE = '''
from dataclasses import dataclass
from typing import ClassVar

import deltakit as dk
from deltakit.compare.stats.metrics import register_metric
from deltakit.compare.tasks.data.splits import Examples, Splits
from deltakit.compare.tasks.kinds import Classification, register_kind
from deltakit.compare.tasks.task import Task, register_task


@dk.register_method("narrow", rank=1)
@dataclass(frozen=True, kw_only=True)
class Narrow(dk.LoRA):
    """Low rank, by another name."""

    learning_rate: ClassVar[float] = 1e-2


@register_metric("worst_recall", kinds=("classification", "opposite"))
def worst_recall(labels, predicted):
    return min((predicted[labels == each] == each).mean() for each in set(labels.tolist()))


@register_kind("opposite")
class Opposite(Classification):
    """Classes in the opposite order."""

    @classmethod
    def parse_labels(cls, splits, classes):
        parsed = super().parse_labels(splits, classes)
        names = tuple(reversed(parsed.kind.classes))
        return super().parse_labels(splits, names)


@register_task("tiny_words")
class TinyWords(Task):
    """A word decides."""

    description: ClassVar[str] = "one of two words"

    def load(self):
        texts = [f"the film {n % 5} a {word}" for n in range(12) for word in ("great", "awful")]
        part = Examples(texts=texts, labels=[0, 1] * 12)
        return self._task_data(Splits(part, part, part), Classification(classes=("up", "down")))
'''


@pytest.fixture
def mine() -> Path:
    path = Path("mine.py")
    path.write_text(FILE, encoding="utf-8")
    return path


def test_all_four_make_a_comparison(
    deltakit: Callable[..., Any], bert: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--methods", "narrow", "--model", bert, "--task", "tiny_words", "--epochs", 1)
    asked = (*asked, "--metric", "worst_recall", "--max-length", 16)
    out = ("--out", "run")
    assert "unknown method 'narrow'" in deltakit("compare", *asked, *out).line
    ended = deltakit("compare", *asked, *out, "--import", mine)
    assert ended.code == 0, ended.err
    with Path("run/results.csv").open(newline="") as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    assert rows["narrow"]["metric"] == "worst_recall" and rows["narrow"]["task"] == "tiny_words"
    assert rows["narrow"]["status"] == "done"
    (recorded,) = json.loads(Path("run/run.json").read_text())["imports"]
    digest = hashlib.sha256(mine.read_bytes()).hexdigest()
    assert recorded == {"name": "mine.py", "path": str(mine.resolve()), "sha256": digest}

    again = deltakit("compare", *asked, *out, "--import", mine)
    assert "4 finished cells of an earlier run are taken" in again.out
    # A process that has not imported the file is told how to.
    METRICS.remove("worst_recall")
    assert deltakit("report", "run").line.endswith("Repeat the command with --import mine.py")
    # Other code is another plan.
    mine.write_text(FILE + "# edited\n")
    monkeypatch.setattr(_imports, "_LOADED", {})
    assert "--import mine.py" in deltakit("plan", *asked, "--import", mine).line


def test_a_kind_of_ones_own(
    deltakit: Callable[..., Any], bert: Path, tasks: SimpleNamespace, mine: Path
) -> None:
    asked = ("--methods", "head", "--model", bert, "--task", tasks.two, "--kind", "opposite")
    ended = deltakit("plan", *asked, "--import", mine, "--metric", "worst_recall")
    assert ended.code == 0 and "2 classes, worst_recall" in ended.out
    # The classification that the data looks like is still the usual one.
    assert "2 classes, accuracy" in deltakit("plan", *asked[:-2], "--import", mine).out


def test_a_config_names_files_too(deltakit: Callable[..., Any], bert: Path, mine: Path) -> None:
    for written in ("import: mine.py", "import: [mine.py]"):
        Path("plan.yaml").write_text(f"{written}\nmethods: narrow\ntask: tiny_words\nweights: fp32")
        ended = deltakit("plan", "--config", "plan.yaml", "--model", bert)
        assert ended.code == 0 and "narrow" in ended.out, ended.err


@pytest.mark.parametrize("command", ["list", "methods", "cite", "summary"])
def test_every_command_knows_the_file(
    deltakit: Callable[..., Any], bert: Path, mine: Path, command: str
) -> None:
    arguments = {
        "list": ("methods",),
        "methods": (),
        "cite": ("narrow",),
        "summary": (bert, "--method", "narrow"),
    }[command]
    ended = deltakit(command, *arguments, "--import", mine)
    assert ended.code == 0, ended.err
    assert command in ("cite", "summary") or "narrow" in ended.out


def test_the_file_is_read_before_any_name(deltakit: Callable[..., Any]) -> None:
    Path("bad.py").write_text("import deltakit\n\nundefined_name\n")
    line = deltakit("plan", "--methods", "nothing", "--import", "bad.py").line
    place = f"{Path('bad.py').resolve()}:3"
    assert line == (
        f"deltakit: --import bad.py: {place}: NameError: name 'undefined_name' is not defined."
    )


@pytest.mark.slow  # four processes that import torch
def test_a_fresh_process_for_each_cell_knows_the_file(
    deltakit: Callable[..., Any], bert: Path, mine: Path
) -> None:
    asked = ("--methods", "narrow", "--model", bert, "--task", "tiny_words", "--epochs", 1)
    asked = (*asked, "--metric", "worst_recall", "--max-length", 16, "--import", mine)
    ended = deltakit("compare", *asked, "--out", "run", "--engine", "processes")
    assert ended.code == 0, ended.out + ended.err


def test_weights_is_the_new_spelling_of_bases(
    deltakit: Callable[..., Any], bert: Path, tasks: SimpleNamespace
) -> None:
    asked = ("plan", "--methods", "head", "--model", bert, "--task", tasks.two)
    new, old = (deltakit(*asked, option, "fp32,bf16") for option in ("--weights", "--bases"))
    assert new.code == 0 and new.out == old.out and "bf16" in new.out
    assert "unknown base 'fp33'" in deltakit(*asked, "--weights", "fp33").line
