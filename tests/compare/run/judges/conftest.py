"""A finished run of a tiny decoder, which every test copies before it is judged."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ENDINGS = ("great film", "awful plot", "the story")


def question(draw: random.Random) -> dict[str, Any]:
    """The ending that repeats a word of the question is right."""
    answer = draw.randrange(len(ENDINGS))
    asked = f"the actor and {ENDINGS[answer].split()[0]}"
    return {"question": asked, "choices": list(ENDINGS), "answer": answer}


@pytest.fixture(scope="session")
def choices(tmp_path_factory: pytest.TempPathFactory, make: SimpleNamespace) -> Path:
    """A task folder: questions with three endings."""
    folder, draw = tmp_path_factory.mktemp("tasks") / "endings", random.Random(0)
    for split, n in (("train", 48), ("validation", 8), ("test", 30)):
        make.lines(folder / f"{split}.jsonl", [question(draw) for _ in range(n)])
    return folder


@pytest.fixture(scope="session")
def chooser(
    tmp_path_factory: pytest.TempPathFactory,
    deltakit: Callable[..., Any],
    decoder: Path,
    choices: Path,
    apart: Callable[..., Any],
) -> Iterator[Path]:
    """The run folder of a tiny decoder on that task: lora and adapter. Read only."""
    root = tmp_path_factory.mktemp("chooser")
    with apart(root):
        ended = deltakit(
            "compare", "--model", decoder, "--task", choices, "--methods", "lora,adapter",
            "--max-length", 24, "--epochs", 6, "--batch-size", 8, "--lr", 2e-2,
            "--out", root / "run",
        )  # fmt: skip
    assert ended.code == 0, ended
    yield root / "run"


@pytest.fixture
def run(chooser: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(chooser, tmp_path / "run"))
