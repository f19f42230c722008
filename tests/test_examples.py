"""Each script in examples runs, says something, and stays short."""

import importlib
import runpy
import sys
from pathlib import Path

import pytest

from deltakit.compare.records.protocol import VARIABLE
from deltakit.core.method import CLASSES, METHODS

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "tiny.py")
ONCE = (
    "step_repeats=1,latency_repeats_b1=1,latency_repeats_b8=1,"
    "handling_repeats=1,inspected_repeats=1"  # nothing is timed twice
)
NEEDS = {"bring_peft_checkpoint.py": "peft"}


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script's folder is on the path, what it registers is forgotten, and nothing is repeated."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)
    importlib.import_module("deltakit.methods")
    for registry in (METHODS, CLASSES):
        monkeypatch.setattr(registry, "_things", dict(registry._things))
    monkeypatch.setenv(VARIABLE, ONCE)
    monkeypatch.setattr(sys, "argv", ["example"])  # not those of pytest


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
def test_an_example_runs(script: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip(NEEDS.get(script, "torch"))
    try:
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")
    finally:
        sys.modules.pop("tiny", None)
    assert capsys.readouterr().out.strip()
    assert list(tmp_path.iterdir()) == [], "an example leaves files behind"


def test_the_examples_are_short_and_say_how_they_are_run() -> None:
    assert len(SCRIPTS) == 6
    for name in SCRIPTS:
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 60, name
        assert f"    python examples/{name}" in text
