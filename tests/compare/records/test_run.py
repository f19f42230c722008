"""The record of a run: it comes back as it was written, and folders of the first layout load."""

import ast
import dataclasses
import importlib.metadata
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import deltakit as dk
from deltakit.compare.api import report_folder, report_joined
from deltakit.compare.measure.provenance import LIBRARIES, library_versions
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.protocol import EARLIER, Protocol
from deltakit.compare.records.result import COLUMNS
from deltakit.compare.records.run import RUN_SCHEMA, CodeVersion, RunRecord
from deltakit.compare.run.description import describe
from deltakit.compare.stats import significance
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.run_folder import RunFolder, differences, open_run
from deltakit.errors import InvalidConfig

FIRST_LAYOUT = Path(__file__).parents[1] / "store" / "run_folder_0_1"


@pytest.fixture
def record(asked: Callable[..., Any]) -> RunRecord:
    return describe(build_plan(asked("lora,fusion", seeds=2, baseline="lora")))


@pytest.fixture
def first_layout(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIRST_LAYOUT, tmp_path / "first"))


def through_json(record: RunRecord) -> RunRecord:
    return RunRecord.from_dict(json.loads(json.dumps(record.to_dict())))


def test_it_comes_back_as_it_was(record: RunRecord) -> None:
    assert through_json(record) == record
    assert {type(value) for value in dataclasses.astuple(record.plan.cells[-1])} <= {
        str,
        int,
        tuple,
    }
    assert record.role("baseline") == "lora" and record.role("nothing") is None


def test_several_machines_and_unknown_code_come_back(record: RunRecord) -> None:
    joined = dataclasses.replace(
        record, machines=record.machines * 2, joined=("a", "b"), code=None, protocol=None
    )
    assert through_json(joined) == joined
    nested = {**record.to_dict(), "machine": [[record.to_dict()["machine"]] * 2, []]}
    assert len(RunRecord.from_dict(nested).machines) == 2


def test_it_holds_every_number_of_the_protocol(record: RunRecord) -> None:
    assert record.protocol == Protocol.from_environment()
    assert record.statistics is not None
    assert record.statistics.bootstrap_draws == significance.DRAWS
    assert record.statistics.confidence == significance.CONFIDENCE


def test_it_knows_every_library_that_deltakit_imports() -> None:
    roots = set()
    for file in Path(dk.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                roots |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                roots.add(node.module.split(".")[0])
    foreign = roots - set(sys.stdlib_module_names) - {"deltakit", "pytest"}
    owners = importlib.metadata.packages_distributions()
    named = {library.lower().replace("_", "-") for library in LIBRARIES}
    for root in sorted(foreign & owners.keys()):
        assert {owner.lower().replace("_", "-") for owner in owners[root]} & named, root
    assert {"numpy", "tokenizers", "torch", "safetensors", "pandas"} <= named
    versions = library_versions()
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    installed = {each.name.lower().replace("_", "-") for each in importlib.metadata.distributions()}
    for name in LIBRARIES:
        assert (versions[name] is not None) == (name in installed), name


def test_a_run_folder_of_the_first_layout_is_read(first_layout: Path) -> None:
    run = RunFolder(first_layout).run_record()
    assert [cell.method for cell in run.plan.cells] == ["majority", "head", "full", "lora"]
    assert (run.task.metric, run.target.test, run.target.labels) == ("accuracy", 36, ("neg", "pos"))
    assert run.plan.budget["epochs"] == 2.0 and run.plan.settings["seeds"] == 1
    assert (run.protocol, run.statistics, run.code) == (None, None, None)


def test_a_run_folder_of_the_first_layout_is_reported(first_layout: Path) -> None:
    table = (first_layout / "table.md").read_text()
    rows = (first_layout / "results.csv").read_text().splitlines()
    found = report_folder(first_layout)
    assert (first_layout / "table.md").read_text() == f"{found.answer}\n\n{table}"
    # Columns that came later are empty, and after the others.
    later = "," * (len(COLUMNS) - len(rows[0].split(",")))
    head, *others = (first_layout / "results.csv").read_text().splitlines()
    assert head.startswith(f"{rows[0]},") and others == [row + later for row in rows[1:]]
    assert len(found.results) == 4 and not found.failures
    assert "pace.csv" in {path.name for path in first_layout.iterdir()}


def test_predictions_of_the_first_layout_have_no_probabilities(first_layout: Path) -> None:
    found = report_folder(first_layout).predictions["lora", "fp32", 0]
    assert found.scores is None and found.classes == ("neg", "pos")
    with pytest.raises(InvalidConfig, match="hold no scores"):
        METRICS.get("roc_auc").value(found)


def test_a_run_folder_of_the_first_layout_is_joined(first_layout: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(first_layout, tmp_path / "copy"))
    joined = report_joined([first_layout, copy], tmp_path / "joined")
    report_folder(first_layout)  # with the columns of today
    assert (tmp_path / "joined" / "results.csv").read_text() == (
        first_layout / "results.csv"
    ).read_text()
    assert joined.run.joined == (str(first_layout), str(copy)) and joined.run.notes == ()
    run = json.loads((copy / "run.json").read_text())
    run["protocol"] = {**EARLIER.to_dict(), "step_repeats": 3}
    (copy / "run.json").write_text(json.dumps(run))
    with pytest.raises(InvalidConfig, match="step_repeats 11 and step_repeats 3"):
        report_joined([first_layout, copy], tmp_path / "other")


def test_a_note_keeps_what_the_first_layout_holds(first_layout: Path) -> None:
    folder = RunFolder(first_layout)
    before = folder.run_record()
    folder.note("It was small.")
    assert folder.run_record() == dataclasses.replace(before, notes=("It was small.",))
    assert json.loads((first_layout / "run.json").read_text())["schema_version"] == RUN_SCHEMA


def test_a_later_layout_is_refused(first_layout: Path) -> None:
    run = json.loads((first_layout / "run.json").read_text())
    (first_layout / "run.json").write_text(json.dumps({**run, "schema_version": 99}))
    with pytest.raises(InvalidConfig, match="later version of deltakit .layout 99.*Update"):
        RunFolder(first_layout).run_record()


@pytest.mark.parametrize("part", ["plan", "roles", "machine", "tasks", "versions"])
@pytest.mark.parametrize("value", [None, 3, {"a": 1}])
def test_a_damaged_file_is_no_run_folder(part: str, value: Any, first_layout: Path) -> None:
    run = json.loads((first_layout / "run.json").read_text())
    (first_layout / "run.json").write_text(json.dumps({**run, part: value}))
    if part in ("roles", "versions") and isinstance(value, dict):
        return  # a mapping is what they are
    with pytest.raises(InvalidConfig, match="no readable run.json"):
        RunFolder(first_layout).run_record()


def test_a_run_that_other_code_goes_on_with_says_so(
    asked: Callable[..., Any], record: RunRecord, tmp_path: Path
) -> None:
    plan = build_plan(asked("lora"))
    now = describe(plan)
    before = dataclasses.replace(
        now,
        code=CodeVersion(commit="a" * 40, clean=True),
        versions={**now.versions, "numpy": "1.0"},
    )
    later = dataclasses.replace(now, code=CodeVersion(commit="b" * 40, clean=False))
    folder = open_run(plan, tmp_path / "run", before)
    assert folder.run_record() == before
    for _ in range(2):
        open_run(plan, tmp_path / "run", later)
    code, numpy = folder.run_record().notes[len(before.notes) :]
    assert "deltakit's code: aaaaaaaaaaaa, bbbbbbbbbbbb with changes." in code
    assert f"numpy: 1.0, {now.versions['numpy']}." in numpy
    assert folder.run_record().code == before.code
    unknown = dataclasses.replace(later, code=None, versions={})
    assert differences("They had", (later, unknown)) == ()


def test_a_run_of_the_first_layout_is_resumed(
    finished: Any, small: list[str], deltakit: Callable[..., Any], trainings: Any, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    run = json.loads((folder / "run.json").read_text())
    for name in ("schema_version", "protocol", "statistics", "code"):
        del run[name]
    run["versions"] = {"deltakit-peft": run["versions"]["deltakit-peft"], "torch": "1.0"}
    (folder / "run.json").write_text(json.dumps(run))
    for scores in (folder / "cells").glob("*.scores.npy"):
        scores.unlink()
    ended = deltakit("compare", "--methods", "adapter,lora,fusion", *small, "--out", folder)
    assert ended.code == 0, ended.err
    assert trainings.count == 0
    assert (folder / "results.csv").read_text() == (finished.folder / "results.csv").read_text()
    (note,) = RunFolder(folder).run_record().notes[len(run["notes"]) :]
    assert note.startswith("The cells were run with different versions of torch: 1.0, ")
