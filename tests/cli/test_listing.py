"""``list``, ``show``, ``copy`` and the completion of the shells."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import deltakit as dk
from deltakit.cli.listing import LISTS
from deltakit.cli.shipped_plans import shipped_plans

Run = Callable[..., Any]
A_NAME = {
    "methods": "houlsby",
    "tasks": "rotten_tomatoes",
    "kinds": "regression",
    "metrics": "f1_macro",
    "models": "minilm",
    "families": "bert",
    "formats": "adapterhub",
    "judges": "lm-eval",
    "plans": "quick",
}


@pytest.mark.parametrize("what", LISTS)
def test_names_as_json_and_as_a_table(what: str, deltakit: Run) -> None:
    ended = deltakit("list", what, "--json")
    assert (ended.code, ended.err) == (0, "")
    entries = json.loads(ended.out)
    names = [entry["name"] for entry in entries]
    assert names == sorted(names) and A_NAME[what] in names
    assert all(entry.keys() == entries[0].keys() for entry in entries)
    table = deltakit("list", what).out
    assert all(name in table for name in names)


def test_each_method_is_described_by_a_line_of_its_own(deltakit: Run) -> None:
    listed = json.loads(deltakit("list", "methods", "--json").out)
    lines = {each["name"]: each["description"] for each in listed}
    assert len({*lines.values()}) == len(lines)
    assert all(line.endswith(".") for line in lines.values())
    assert (
        lines["mola"]
        != lines["mixture"]
        == "Several experts of a method's form at each of its placements."
    )


def test_what_cannot_be_listed(deltakit: Run) -> None:
    assert "'methods', 'tasks'" in deltakit("list", "method").line


@pytest.mark.parametrize("plan", sorted(shipped_plans()))
def test_a_plan_is_shown_and_copied_as_it_is(plan: str, deltakit: Run, tmp_path: Path) -> None:
    content = shipped_plans()[plan].read_text(encoding="utf-8")
    assert deltakit("show", plan).out == content and "methods" in yaml.safe_load(content)
    ended = deltakit("copy", plan, tmp_path / "mine.yaml")
    assert ended.code == 0 and f"deltakit compare --config {tmp_path / 'mine.yaml'}" in ended.out
    assert (tmp_path / "mine.yaml").read_text(encoding="utf-8") == content


def test_a_copy_overwrites_nothing(deltakit: Run, tmp_path: Path) -> None:
    place = tmp_path / "mine.yaml"
    place.write_text("mine")
    assert "exists. Choose another name" in deltakit("copy", "quick", place).line
    assert place.read_text() == "mine"
    assert "cannot be written" in deltakit("copy", "quick", tmp_path / "none" / "a.yaml").line


@pytest.mark.parametrize("command", ["show", "copy"])
def test_a_plan_that_is_not_shipped(command: str, deltakit: Run, tmp_path: Path) -> None:
    more = (tmp_path / "a.yaml",) if command == "copy" else ()
    assert "unknown plan 'quik'. Did you mean 'quick'" in deltakit(command, "quik", *more).line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_script(shell: str, deltakit: Run) -> None:
    ended = deltakit("completion", shell)
    assert ended.code == 0 and f"_DELTAKIT_COMPLETE={shell}_complete" in ended.out


def test_a_shell_that_is_not_known(deltakit: Run) -> None:
    assert "'bash', 'zsh', 'fish'" in deltakit("completion", "tcsh").line


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("deltakit co", {"compare", "completion", "convert", "copy"}),
        ("deltakit show qu", {"quick"}),
        ("deltakit list me", {"methods", "metrics"}),
        ("deltakit compare --meth", {"--methods"}),
    ],
)
def test_words_are_completed(words: str, completed: set[str]) -> None:
    last = words.count(" ")
    root = str(Path(dk.__file__).parents[1])
    asked = {"_DELTAKIT_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(last)}
    code = "import sys; sys.argv = ['deltakit']; from deltakit.cli.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": root, **asked},
        capture_output=True,
        text=True,
    )
    assert {line.partition(",")[2] for line in ended.stdout.splitlines()} == completed, ended.stderr
