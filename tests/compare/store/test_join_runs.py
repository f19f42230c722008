"""Several run folders as one, and what is not joined."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltakit.compare.api import report_folder, report_joined, run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.store.join_runs import join
from deltakit.compare.store.run_folder import RunFolder
from deltakit.errors import InvalidConfig

Edit = Callable[[dict[str, Any]], None]


def copy(finished: Any, to: Path, edit: Edit = lambda run: None) -> Path:
    """The finished run somewhere else, described differently."""
    shutil.copytree(finished.folder, to)
    run = json.loads((to / "run.json").read_text())
    edit(run)
    (to / "run.json").write_text(json.dumps(run))
    return to


def lose(folder: Path, *methods: str) -> Path:
    """The same folder without some of its cells."""
    for cell in RunFolder(folder).run_record().plan.cells:
        if cell.method in methods:
            for file in (folder / "cells").glob(f"{cell.id}.*"):
                file.unlink()
    return folder


def other_seed(run: dict[str, Any], **changes: Any) -> None:
    """Says that the last row is of another seed, and otherwise too."""
    run["plan"]["cells"][-1] |= {"seed": 1, "id": "x", **changes}


def on_machine(folder: Path, name: str, *methods: str) -> None:
    """Says that some cells were measured elsewhere."""
    for file in (folder / "cells").glob("????????????????.json"):
        content = json.loads(file.read_text())
        if content["result"]["method"] in methods:
            content["result"]["machine"] = name
            file.write_text(json.dumps(content))


def test_the_cells_of_one_plan_that_were_spread_over_machines(
    finished: Any, tmp_path: Path, read: Any
) -> None:
    one = lose(copy(finished, tmp_path / "one"), "lora", "fusion")
    two = lose(copy(finished, tmp_path / "two"), "head", "adapter", "lora")
    three = lose(copy(finished, tmp_path / "three"), *finished.rows.keys() - {"lora"})
    joined = report_joined([one, two, three], tmp_path / "joined")
    assert read.results(tmp_path / "joined") == finished.rows
    assert read.predictions(tmp_path / "joined") == read.predictions(finished.folder)
    assert joined.run.id == RunFolder(finished.folder).run_record().id
    assert joined.run.joined == (str(one), str(two), str(three))
    for name in ("table.md", "table.tex", "results.csv"):
        assert (tmp_path / "joined" / name).read_text() == (finished.folder / name).read_text()
    before = (tmp_path / "joined" / "results.csv").read_bytes()
    assert report_folder(tmp_path / "joined").results == joined.results
    report_joined([one, two, three], tmp_path / "joined")  # what was joined may be joined anew
    assert (tmp_path / "joined" / "results.csv").read_bytes() == before
    assert read.leftovers(tmp_path) == []


def test_other_methods_under_the_same_conditions(
    finished: Any, asked: Callable[..., Any], tmp_path: Path, read: Any
) -> None:
    run_plan(build_plan(asked("ia3")), tmp_path / "other")
    joined = report_joined([finished.folder, tmp_path / "other"], tmp_path / "joined")
    rows = read.results(tmp_path / "joined")
    assert list(rows) == [*finished.rows, "ia3"]
    assert {m: rows[m] for m in finished.rows} == finished.rows, "the first has precedence"
    assert rows["ia3"] == read.results(tmp_path / "other")["ia3"]
    assert joined.run.plan.methods == ("adapter", "lora", "fusion", "ia3")
    assert set(joined.run.tasks) == {"two", "shop", "trade"}
    assert "ia3" in (tmp_path / "joined" / "report.html").read_text()


def test_a_cell_that_failed_here_and_is_done_there(
    finished: Any, tmp_path: Path, read: Any
) -> None:
    one, two = copy(finished, tmp_path / "one"), copy(finished, tmp_path / "two")
    (cell,) = [c for c in RunFolder(one).run_record().plan.cells if c.method == "lora"]
    path = one / "cells" / f"{cell.id}.json"
    content = json.loads(path.read_text())
    content["result"] |= {"status": "failed", "score": None, "reason": "out of memory"}
    path.write_text(json.dumps(content))
    assert not report_joined([one, two], tmp_path / "joined").failures
    assert report_joined([one, one], tmp_path / "again").failures[0].method == "lora"
    assert read.results(tmp_path / "joined") == finished.rows


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda run: run["versions"].update({"deltakit-peft": "9.9"}), "version of deltakit.*9.9"),
        (lambda run: run["model"].update(fingerprint="f" * 64), "the model differs.*f{16}\\)"),
        (lambda run: run["task"].update(metric="f1"), "the metric differs.*f1"),
        (lambda run: run["tasks"]["two"].update(fingerprint="0" * 64), "the examples of the task"),
        (lambda run: run["tasks"]["two"].update(test=35), "number of test examples.*36 and 35"),
        (lambda run: run["plan"]["budget"].update(epochs=9.0), "epochs 2.0 and epochs 9.0"),
        (lambda run: run["plan"].update(trials=4), "the number of trials differs.*1 and 4"),
        (lambda run: run["plan"].update(lr_grid=[1e-5, 1e-1]), "the grid of learning rates"),
        (lambda run: run["plan"].update(compute_dtype="float16"), "compute dtype.*None and float"),
        (lambda run: run["protocol"].update(step_repeats=7), "step_repeats 1 and step_repeats 7"),
        (lambda run: run["plan"]["cells"][-1].update(id="x"), "row fusion.*made differently"),
        (lambda run: other_seed(run, rates=[9.0]), "row fusion.*seed 1.*made differently"),
        (lambda run: other_seed(run, config="LoRA()"), "row fusion.*made differently"),
        (lambda run: run["tasks"]["shop"].update(fingerprint="0"), "the task 'shop' differ"),
    ],
)
def test_runs_that_do_not_compare_are_refused(
    edit: Edit, message: str, finished: Any, tmp_path: Path
) -> None:
    other = copy(finished, tmp_path / "other", edit)
    with pytest.raises(InvalidConfig, match=message) as error:
        join([finished.folder, other], tmp_path / "joined")
    assert str(finished.folder) in str(error.value) and str(other) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "joined").exists()


def test_a_row_of_the_same_settings_at_another_seed_is_joined(
    finished: Any, tmp_path: Path
) -> None:
    other = copy(finished, tmp_path / "other", other_seed)
    joined = join([finished.folder, other], tmp_path / "joined").run_record()
    assert [c.seed for c in joined.plan.cells if c.method == "fusion"] == [0, 1]


def test_versions_of_an_imported_file_are_told(finished: Any, tmp_path: Path) -> None:
    def imported(sha: str) -> Edit:
        return lambda run: run.update(imports=[{"name": "m.py", "path": "/m.py", "sha256": sha}])

    one, two = (copy(finished, tmp_path / each, imported(each)) for each in ("a", "b"))
    told = "The joined runs imported different versions of m.py."
    assert told in join([one, two], tmp_path / "joined").run_record().notes
    assert told not in join([one, one], tmp_path / "same").run_record().notes


def test_a_folder_in_use_is_not_written_to(finished: Any, tmp_path: Path) -> None:
    one, two = copy(finished, tmp_path / "one"), copy(finished, tmp_path / "two")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    for out in (one, tmp_path / "mine"):
        with pytest.raises(InvalidConfig, match="Choose another one"):
            join([one, two], out)
    with pytest.raises(InvalidConfig, match="not a run folder"):
        join([one, tmp_path / "mine"], tmp_path / "joined")


def test_times_of_several_machines_are_marked(finished: Any, tmp_path: Path, read: Any) -> None:
    one, two = copy(finished, tmp_path / "one"), copy(finished, tmp_path / "two")
    machine = finished.rows["head"]["machine"]
    assert machine and finished.rows["majority"]["machine"] == ""
    on_machine(two, "A later one", "lora")
    lose(one, "lora")
    joined = report_joined([one, two], tmp_path / "joined")
    table = (tmp_path / "joined" / "table.md").read_text()
    lines = {line.split("|")[1].strip(): line for line in table.splitlines() if "|" in line}
    assert " s [1] " in lines["lora"] and " s [2] " in lines["head"]
    assert f"[1] A later one, [2] {machine}: they do not compare, their ratios do." in table
    assert "×" in lines["lora"] and "× [" not in lines["lora"]
    page = (tmp_path / "joined" / "report.html").read_text()
    assert "Training time" not in page, "a front of times of several machines"
    assert "Training time" in (finished.folder / "report.html").read_text()
    assert read.results(tmp_path / "joined")["lora"]["machine"] == "A later one"
    assert [row.machine for row in joined.results if row.method == "lora"] == ["A later one"]


def test_libraries_of_several_versions_are_said(finished: Any, tmp_path: Path) -> None:
    other = copy(finished, tmp_path / "other", lambda run: run["versions"].update(torch="9.9"))
    notes = join([finished.folder, other], tmp_path / "joined").run_record().notes
    assert any("versions of torch: " in note and "9.9" in note for note in notes)
