"""Ctrl-C and full disks: one line, its exit code, nothing half written, and the same command."""

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
from safetensors import SafetensorError

import deltakit as dk
from deltakit.cli import main

Run = Callable[..., Any]


@pytest.fixture
def saved(kit: SimpleNamespace, tmp_path: Path) -> Path:
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA(rank=3), name="mine")
    dk.save(model, tmp_path / "mine", name="mine")
    model.config.save_pretrained(tmp_path / "base")
    return tmp_path / "mine"


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_in_rust(*_: Any, **__: Any) -> None:
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os 28)")


@pytest.mark.parametrize("to", ["deltakit", "peft", "adapterhub"])
@pytest.mark.parametrize("error", [full, full_in_rust])
def test_a_conversion_on_a_full_disk(
    to: str, error: Any, deltakit: Run, saved: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    command = ("convert", saved, tmp_path / "new", "--to", to, "--base", tmp_path / "base")
    with monkeypatch.context() as patch:
        patch.setattr(safetensors.torch, "save_file", error)
        patch.setattr("torch.save", error)
        ended = deltakit(*command)
    assert ended.code == 2 and ended.out == ""
    assert f"{str(tmp_path / 'new')}/" in ended.line and "No space left on device." in ended.line
    assert "No file is half written. Make room" in ended.line and "cells" not in ended.line
    assert list((tmp_path / "new").iterdir()) == []
    assert deltakit(*command).code == 0


def test_a_plan_is_copied_whole_or_not(
    deltakit: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        ended = deltakit("copy", "quick", tmp_path / "mine.yaml")
    assert ended.code == 2 and "mine.yaml cannot be written: No space left" in ended.line
    assert list(tmp_path.iterdir()) == []
    assert deltakit("copy", "quick", tmp_path / "mine.yaml").code == 0


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("convert", "a", "b", "--to", "peft"), "No file is half written; give the same command"),
        (("evaluate", "a", "--with", "mteb", "--tasks", "b"), "verdicts on judged rows are kept"),
        (("choose",), "Finished trainings are kept; the same command goes on there"),
        (
            ("compare", "--methods", "lora"),
            "Finished cells are kept; the same command goes on there",
        ),
    ],
)
def test_ctrl_c_before_the_work_begins(
    command: tuple[str, ...], said: str, deltakit: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main.cli.commands[command[0]], "callback", interrupted)
    ended = deltakit(*command)
    assert ended.code == 130 and ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("deltakit: stopped. ") and said in line
