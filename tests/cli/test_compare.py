"""``deltakit compare`` from the outside: what it prints, its exit codes, going on, YAML files."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltakit.compare.run import cell

Run = Callable[..., Any]
ROWS = ("majority", "head", "full", "adapter", "lora", "fusion")


def test_the_main_job_says_what_it_does_and_prints_the_table(finished: Any) -> None:
    assert finished.ended.code == 0
    out = finished.ended.out
    assert f"run folder: {finished.folder}" in out.replace("\n", "")
    for method in ROWS:
        assert f"{method}: " in out and " % in " in out
    assert "Score %" in out and "vs floor" in out
    assert "report.html has the whole comparison" in out.replace("\n", " ")
    assert "Traceback" not in out + finished.ended.err


def test_the_same_command_again_reuses_every_cell(
    finished: Any, deltakit: Run, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished.folder, out)
    monkeypatch.setattr(cell, "train", None)  # nothing calls it
    ended = deltakit("compare", "--methods", "adapter,lora,fusion", *small, "--out", out)
    assert ended.code == 0, ended
    assert "6 finished cells" in ended.out
    for name in ("run.json", "results.csv"):
        assert (out / name).read_bytes() == (finished.folder / name).read_bytes()


def test_an_interrupt_is_130_and_the_same_command_goes_on(
    finished: Any,
    deltakit: Run,
    small: list[str],
    tmp_path: Path,
    read: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    command = ("compare", "--methods", "adapter,lora", *small, "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr(cell, "train", interrupted_at(4, cell.train))
        ended = deltakit(*command)
    assert ended.code == 130
    assert "Traceback" not in ended.err + ended.out
    assert "the same command goes on" in ended.out.replace("\n", " ")
    before = {path.name: path.read_bytes() for path in (out / "cells").iterdir()}
    # majority, head, full, adapter, with their probabilities; the learning curves of three of
    # them; what the last two do inside; where the deltas of head and adapter are
    assert len(before) == 3 * 4 + 3 + 2 + 2
    ended = deltakit(*command)
    assert ended.code == 0, ended
    assert "4 finished cells" in ended.out
    assert {name: (out / "cells" / name).read_bytes() for name in before} == before
    for method, row in read.results(out).items():
        assert row["score"] == finished.rows[method]["score"]
    assert read.leftovers(tmp_path) == []


def interrupted_at(number: int, train: Callable[..., Any]) -> Callable[..., Any]:
    """`train`, interrupted after the first step of its n-th call."""
    left = number

    class Stop:
        def advance(self, units: int = 1) -> None:
            raise KeyboardInterrupt

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        return train(*args, **({**kwargs, "progress": Stop()} if left == 0 else kwargs))

    return call


def test_failed_cells_are_exit_code_1_with_the_table_all_the_same(
    deltakit: Run, small: list[str], tmp_path: Path, read: SimpleNamespace
) -> None:
    out = tmp_path / "run"
    ended = deltakit("compare", "--methods", "adapter", *small, "--lr", "1e30", "--out", out)
    assert ended.code == 1
    assert "failed" in ended.out and "loss is" in ended.out
    assert "Traceback" not in ended.out + ended.err
    rows = read.results(out)
    assert rows["full"]["status"] == "failed" and rows["majority"]["status"] == "done"
    assert "loss is" in (out / "table.md").read_text() + (out / "report.html").read_text()
    assert "--retry-failed" in ended.out
    command = ("compare", "--methods", "adapter", *small, "--lr", "1e30", "--out", out)
    kept = deltakit(*command)
    assert kept.code == 1 and "4 finished cells" in kept.out
    again = deltakit(*command, "--retry-failed")
    assert again.code == 1 and "2 finished cells" in again.out and "full: failed" in again.out


def test_a_yaml_file_names_the_options_and_the_command_line_goes_before_it(
    deltakit: Run, bert: Path, tasks: SimpleNamespace, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        f"methods: ['lora[rank=2,targets=q/v]', adapter]\nmodel: {bert}\ntask: {tasks.two}\n"
        "max-train-samples: all\nmax_eval_samples: 20\nepochs: 4\nlr: 1e-3\nbatch_size: 16\n"
    )
    out = tmp_path / "run"
    ended = deltakit(
        "compare", "--config", file, "--epochs", "1", "--methods", "head", "--out", out
    )
    assert ended.code == 0, ended
    said = json.loads((out / "run.json").read_text())
    assert [each["method"] for each in said["plan"]["cells"]] == ["majority", "full", "head"]
    budget = said["plan"]["budget"]
    assert budget["epochs"] == 1 and budget["lr"] == 1e-3 and budget["batch_size"] == 16
    assert budget["max_train_samples"] is None and budget["max_eval_samples"] == 20
    assert said["tasks"]["two"]["train"] == 48 and said["tasks"]["two"]["test"] == 20
    planned = deltakit("plan", "--config", file)
    assert "lora[rank=2,targets=q/v]" in planned.out and "adapter" in planned.out


def test_a_profiles_numbers_can_be_changed_one_by_one(
    deltakit: Run, small: list[str], tmp_path: Path
) -> None:
    small = [*small, "--latency", "1x32"]  # the profile's are longer than this model reads
    ended = deltakit("plan", "--methods", "lora", *small, "--profile", "standard")
    assert ended.code == 0, ended
    assert ended.out.count("lora ") == 3  # three seeds
    again = deltakit("plan", "--methods", "lora", *small, "--profile", "standard", "--seeds", "1")
    assert again.out.count("lora ") == 1


def test_without_out_the_folder_is_under_runs(
    deltakit: Run, small: list[str], tmp_path: Path
) -> None:
    assert deltakit("compare", "--methods", "head", *small).code == 0
    (folder,) = Path("runs").iterdir()
    assert (folder / "report.html").is_file()
    ended = deltakit("compare", "--methods", "head", *small)
    assert "3 finished cells" in ended.out
    assert len(list(Path("runs").iterdir())) == 1
