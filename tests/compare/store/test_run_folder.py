"""The run folder and the stores of deltas: whole files or none."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deltakit import _files
from deltakit._files import write_text
from deltakit.compare.plan.plan import Plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import COLUMNS, CellResult, Predictions, Scores
from deltakit.compare.records.training import TrainingRecord
from deltakit.compare.run.description import describe
from deltakit.compare.store import run_folder as store
from deltakit.compare.store.run_folder import DeltaStore, RunFolder, open_run, shared_deltas
from deltakit.errors import InvalidConfig

RECORD = TrainingRecord(seconds=1.25, steps=3, examples=10, losses=(0.7, 0.6, 0.5))


@pytest.fixture
def plan(asked: Callable[..., Any]) -> Plan:
    return build_plan(asked("lora"))


def result(**changes: Any) -> CellResult:
    return CellResult(**{"method": "lora", "base": "fp32", "task": "two", "seed": 0, **changes})


# ------------------------------------------------------------------------------------ the cells


def test_a_cell_comes_back_as_it_was(plan: Plan, tmp_path: Path) -> None:
    folder, cell = RunFolder(tmp_path), plan.cells[-1]
    assert folder.result(cell.id) is None
    assert folder.predictions(cell.id) is None
    assert not folder.finished(cell.id)
    stored = result(score=2 / 3, score_low=0.1, n_test=3, trained_params=7, final_loss=1e-9)
    predictions = Predictions(labels=(0, 1, 1), predicted=(0, 1, 0))
    folder.write(cell, stored, predictions)
    assert folder.result(cell.id) == stored
    assert folder.predictions(cell.id) == predictions
    assert folder.finished(cell.id)
    content = json.loads(folder.cell_path(cell.id).read_text())
    assert content["id"] == cell.id
    assert content["training"] == cell.training.id
    assert list(content["result"]) == list(COLUMNS)


def test_probabilities_come_back_and_those_of_an_earlier_attempt_go(
    plan: Plan, tmp_path: Path
) -> None:
    folder, cell = RunFolder(tmp_path), plan.cells[-1]
    predictions = Predictions(
        labels=(0, 1), predicted=(0, 0), scores=Scores([[0.9, 0.1], [2 / 3, 1 / 3]])
    )
    folder.write(cell, result(), predictions)
    assert folder.predictions(cell.id) == predictions
    named = folder.predictions(cell.id, classes=("neg", "pos"))
    assert named == dataclasses.replace(predictions, classes=("neg", "pos"))
    stored = np.load(folder.scores_path(cell.id))
    assert predictions.scores is not None and (stored == predictions.scores.array).all()
    without = dataclasses.replace(predictions, scores=None)
    folder.write(cell, result(), without)
    assert folder.predictions(cell.id) == without
    assert not folder.scores_path(cell.id).exists()


def test_what_was_found_in_a_model_comes_back_and_nothing_has_no_file(
    plan: Plan, tmp_path: Path
) -> None:
    folder, cell = RunFolder(tmp_path), plan.cells[-1]
    folder.write_extra(cell, "diagnostics", {})
    assert list(tmp_path.iterdir()) == []
    assert folder.extras(cell.id, "diagnostics") is None
    folder.write_extra(cell, "diagnostics", {"moved": {"encoder.0": 1 / 3}})
    assert folder.extras(cell.id, "diagnostics") == {"moved": {"encoder.0": 1 / 3}}
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{cell.id}.diagnostics.json"]


def test_a_failed_cell_is_there_but_not_finished(plan: Plan, tmp_path: Path) -> None:
    folder, cell = RunFolder(tmp_path), plan.cells[-1]
    folder.write(cell, result(status="failed", reason="out of memory"), None)
    assert folder.result(cell.id) == result(status="failed", reason="out of memory")
    assert not folder.finished(cell.id)
    folder.write(cell, result(), Predictions(labels=(0,), predicted=(1,)))
    assert folder.finished(cell.id)


def test_a_column_that_is_not_known_is_not_read_silently() -> None:
    with pytest.raises(TypeError, match="novelty"):
        CellResult.from_dict({**result().to_dict(), "novelty": 1})


def test_a_cell_that_is_cut_short_while_it_is_written_is_not_there(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cell = RunFolder(tmp_path), plan.cells[-1]

    replace = Path.replace

    def cut(path: Path, target: Path) -> Path:
        if target.suffix == ".json":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", cut)
    with pytest.raises(KeyboardInterrupt):
        folder.write(cell, result(), Predictions(labels=(0,), predicted=(1,)))
    assert not folder.finished(cell.id)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{cell.id}.predictions.csv"]


def test_a_file_replaces_another_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_text(target, "before")
    with pytest.raises(RuntimeError), _files.atomic_path(target) as temporary:
        assert temporary.parent == target.parent
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "before"
    write_text(target, "after")
    assert target.read_text() == "after"
    assert list(target.parent.iterdir()) == [target]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_files._umask()


def test_what_killed_writers_left_is_swept(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), _files.atomic_path(tmp_path / "run.json") as temporary:
        name = temporary.name
        raise RuntimeError
    kept = [".gitignore", "run.json", ".run.json", ".mine.json", ".a.abcd1234.json"]
    for each in (name, ".b.csv.abcd_234.csv", *kept):
        (tmp_path / each).write_text("{")
    _files.sweep(tmp_path, "b")
    assert (tmp_path / name).exists()
    _files.sweep(tmp_path)
    _files.sweep(tmp_path / "nowhere")
    assert {path.name for path in tmp_path.iterdir()} == set(kept)


# ----------------------------------------------------------------------------------- the folder


def test_a_new_folder_is_made_and_an_old_one_found(plan: Plan, tmp_path: Path) -> None:
    opened = open_run(plan, tmp_path / "a" / "run", describe(plan))
    before = (opened.path / "run.json").read_bytes()
    assert opened.run_record().id == plan.id
    again = dataclasses.replace(describe(plan), created="later", machines=())
    assert open_run(plan, opened.path, again) == opened
    assert (opened.path / "run.json").read_bytes() == before


def test_an_empty_folder_may_be_used(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert open_run(plan, tmp_path / "empty", describe(plan)).path == tmp_path / "empty"


def test_a_folder_whose_worker_was_killed_at_once_may_be_used(plan: Plan, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "locks").mkdir(parents=True)
    (folder / ".run.json.abcd1234.json").write_text("{")
    opened = open_run(plan, folder, describe(plan))
    assert sorted(path.name for path in opened.path.iterdir()) == ["locks", "run.json"]


def test_the_folder_of_another_plan_is_refused(
    plan: Plan, asked: Callable[..., Any], tmp_path: Path
) -> None:
    open_run(plan, tmp_path / "run", describe(plan))
    other = build_plan(asked("lora", lr=0.5))
    with pytest.raises(InvalidConfig, match=f"another plan.*{plan.id}.*{other.id}"):
        open_run(other, tmp_path / "run", describe(other))


def test_something_else_is_refused_and_left_alone(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    for path in (tmp_path / "mine", tmp_path / "mine" / "thesis.tex"):
        with pytest.raises(InvalidConfig, match="not a run folder"):
            open_run(plan, path, describe(plan))
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"id": "x"}', '{"id": "x", "plan": 3}'])
def test_a_run_json_that_says_nothing_is_refused(content: str, plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InvalidConfig, match=r"no readable run\.json"):
        RunFolder(tmp_path).run_record()
    with pytest.raises(InvalidConfig, match="not a run folder"):
        open_run(plan, tmp_path, describe(plan))


def test_the_newest_earlier_folder_of_a_plan_is_taken(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = open_run(plan, None, describe(plan))
    assert first.path.name.endswith(plan.id)
    monkeypatch.setattr(time, "strftime", lambda *_: "99991231-235959")
    assert store._default_folder(plan) == first.path
    later = open_run(plan, Path("runs") / f"99991231-235959-{plan.id}", describe(plan))
    assert store._default_folder(plan) == later.path


# ------------------------------------------------------------------------------------ the deltas


def test_a_delta_is_there_once_its_record_is(plan: Plan, tmp_path: Path) -> None:
    training, deltas = plan.cells[-1].training, DeltaStore(tmp_path)
    assert deltas.record(training) is None

    def save(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "delta.safetensors").write_bytes(b"12345")
        assert deltas.record(training) is None

    assert deltas.write(training, RECORD, save) == 5
    assert deltas.record(training) == RECORD
    assert deltas.size(training) == 5
    deltas.discard(training)
    assert deltas.record(training) is None
    deltas.discard(training)


def test_trainings_that_differ_do_not_share_a_folder(plan: Plan, tmp_path: Path) -> None:
    training, deltas = plan.cells[-1].training, DeltaStore(tmp_path)
    assert deltas.folder(training) != deltas.folder(dataclasses.replace(training, seed=1))


def test_where_shared_deltas_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DELTAKIT_CACHE", str(tmp_path / "own"))
    assert shared_deltas().path == tmp_path / "own" / "deltas"
    monkeypatch.delenv("DELTAKIT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert shared_deltas().path == tmp_path / "xdg" / "deltakit" / "deltas"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shared_deltas().path == tmp_path / ".cache" / "deltakit" / "deltas"


def test_a_note_is_added_once(plan: Plan, tmp_path: Path) -> None:
    folder = open_run(plan, tmp_path / "run", describe(plan))
    before = folder.run_record()
    for text in ("it has no pooler", "it has no pooler", "it is small"):
        folder.note(text)
    after = folder.run_record()
    assert after == dataclasses.replace(
        before, notes=(*before.notes, "it has no pooler", "it is small")
    )


def test_a_cache_that_cannot_be_written_is_told_first(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DELTAKIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(InvalidConfig, match="the cache .* cannot be written: .*DELTAKIT_CACHE"):
        open_run(plan, tmp_path / "run", describe(plan))
    assert not (tmp_path / "run").exists()
