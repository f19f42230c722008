"""README keeps its word: its commands parse, its Python runs."""

import re
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import deltakit as dk
from deltakit.cli.main import cli
from deltakit.core.spec import split_outside_brackets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(mark: str) -> str:
    """The code block under ``<!-- mark -->``."""
    found = re.search(rf"<!-- {mark} -->\s*```\w*\n(.*?)```", README, re.DOTALL)
    assert found is not None, f"README.md has no code block under <!-- {mark} -->"
    return found.group(1)


def test_the_two_commands_install_what_they_run() -> None:
    main, tests = block("main"), block("tests")
    assert "deltakit compare --methods adapter,lora,fusion" in main
    assert "pytest" in tests
    for command in (main, tests):
        assert len(command.strip().splitlines()) == 1
        assert "python3 -m venv" in command and "[demo" in command
        assert "pip install deltakit" not in command


def test_nobody_is_told_to_install_the_unrelated_package() -> None:
    assert not re.search(r"pip install (-\S+ )*deltakit(?!-peft)\b", README)


def test_every_method_that_is_mentioned_parses() -> None:
    lists = re.findall(r"--methods[ =](\"[^\"]+\"|[^\s`]+)", README)
    assert lists
    for each in lists:
        for spec in split_outside_brackets(each.strip('"'), ","):
            assert isinstance(dk.parse_method(spec.strip()), dk.Method)


def test_every_command_that_is_mentioned_exists() -> None:
    for block_text in re.findall(r"```(?:bash|sh|console)\n(.*?)```", README, re.DOTALL):
        for words in re.findall(r"\bdeltakit +([a-z]\S*)", block_text):
            assert shlex.split(words)[0] in cli.commands


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_api_runs_and_leaves_the_model_as_it_was(
    family: str, kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = kit.make_model(family, "classify")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exec(compile(block("api"), "README.md", "exec"), {"model": model})
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert kit.hook_count(model) == 0


def test_the_api_is_short() -> None:
    lines = [line for line in block("api").splitlines() if line.startswith("dk.") or "(dk." in line]
    assert 5 <= len(lines) <= 10


def test_links_to_files_of_the_project_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
