"""What was forgotten, as a column of a run."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltakit.compare.api import Results, compare, report_folder, report_joined
from deltakit.compare.plan.plan import with_protocol
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.protocol import VARIABLE, Protocol
from deltakit.compare.report.terminal import plain_text, terminal_table
from deltakit.compare.run.description import describe
from deltakit.compare.store.run_folder import RunFolder, as_begun, open_run
from deltakit.errors import InvalidConfig

COLUMN = "Forgotten"


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory, apart: Any, bert: Path, tasks: Any) -> Results:
    """A run on the tiny BERT with two seeds, at a rate that moves it."""
    root = tmp_path_factory.mktemp("forgotten")
    with apart(root) as patch:
        patch.setenv(VARIABLE, f"{os.environ[VARIABLE]},curve_points=0,general_passages=5")
        return compare(
            "lora", model=bert, task=tasks.two, seeds=2, lr=1e-2, out=root / "run", engine="local"
        )


def test_every_trained_row_has_forgotten_something(ended: Results) -> None:
    table = ended.table.set_index("method")
    assert table.loc["head", "forgotten"] == 0.0
    assert table.loc["lora", "forgotten"] > 1e-6 and table.loc["full", "forgotten"] > 1e-6
    assert table["forgotten"].isna().tolist() == [True, False, False, False]
    assert set(table["forgotten_kind"].dropna()) == {"drift"}
    assert table.loc["lora", "forgotten_low"] < table.loc["lora", "forgotten"]
    values = [row.forgotten for row in ended.results if row.method == "lora"]
    assert len(values) == 2 and table.loc["lora", "forgotten"] == pytest.approx(sum(values) / 2)
    assert ended.run.general is not None and ended.run.general.passages == 5


def test_it_is_in_the_table_the_page_and_the_terminal(ended: Results) -> None:
    head, _, majority, floor, _, lora = [
        [field.strip() for field in line.split("|")[1:-1]]
        for line in (ended.folder / "table.md").read_text().splitlines()
        if line.startswith("|")
    ]
    at = head.index(COLUMN)
    assert (majority[at], floor[at][:1]) == ("–", "0") and "±" in lora[at]
    sentence = "the last hidden states with and without the delta, on 5 passages of deltakit's"
    for name in ("table.md", "report.html"):
        text = (ended.folder / name).read_text().replace("&#39;", "'")
        assert f"{COLUMN}: one minus the mean cosine between {sentence} general text." in text
    wide, narrow = (
        plain_text(terminal_table(ended.results, ended.predictions, ended.run, width=w), width=w)
        for w in (200, 80)
    )
    assert COLUMN in wide.splitlines()[1] + wide.splitlines()[2]
    assert COLUMN not in narrow.splitlines()[1] + narrow.splitlines()[2]


def test_a_folder_without_the_figure_has_no_column(ended: Results, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(ended.folder, tmp_path / "run"))
    for file in (folder / "cells").glob("????????????????.json"):
        content = json.loads(file.read_text())
        fields = content["result"].items()
        content["result"] = {name: each for name, each in fields if "forgotten" not in name}
        file.write_text(json.dumps(content))
    run = RunFolder(folder).run_record()
    RunFolder(folder).write_run_record(dataclasses.replace(run, general=None))
    found = report_folder(folder)
    assert not found.failures and len(found.results) == len(ended.results)
    assert COLUMN not in (folder / "table.md").read_text()
    assert found.table["forgotten"].isna().all()
    with pytest.raises(InvalidConfig, match="do not compare: the general text differs"):
        report_joined([ended.folder, folder], tmp_path / "joined")


def test_a_run_that_was_begun_without_it_goes_on_without_it(
    asked: Callable[..., Any], tmp_path: Path
) -> None:
    usual = Protocol(curve_points=0, step_repeats=4)
    plan = build_plan(asked("head", protocol=usual))
    without = dataclasses.replace(usual, general_passages=0)
    before = describe(with_protocol(plan, without))
    open_run(plan, tmp_path / "run", before)
    again = as_begun(plan, tmp_path / "run")
    assert again.request.protocol == without and again.general is None
    assert again.id == plan.id and plan.general is not None
