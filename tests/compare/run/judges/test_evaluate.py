"""Rows of a finished run under another library's questions: asked, stored, shown, refused.

The library is a few lines here: its score is computed from the model's own outputs.
"""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.compare.api import evaluate, report_folder, report_joined
from deltakit.compare.records.verdict import Verdict
from deltakit.compare.run.judges import JUDGES, Judge, JudgedModel, LmEval, Mteb, Questions
from deltakit.compare.run.judges.base import register_judge
from deltakit.compare.store.run_folder import RunFolder
from deltakit.errors import InvalidConfig, MissingExtra, UnknownName

TITLE = "ruler: size mean"


def measured(model: Any) -> float:
    """A number that depends on every output for one text."""
    with torch.inference_mode():
        outputs = model(torch.arange(4, 14)[None], output_hidden_states=True)
    return float(outputs.hidden_states[-1].square().mean())


class Ruler(Judge):
    """Measures the last states of one text."""

    package = "json"
    distribution = "numpy"
    install = "it is always there"
    loaded_for = frozenset({"classify"})
    suits = "classifiers"
    options = frozenset({"--limit"})

    def check_tasks(self, tasks: tuple[str, ...]) -> None:
        if tasks != ("size",):
            raise UnknownName(f"the ruler has no task {tasks[0]!r}.")

    def judge(self, judged: JudgedModel, questions: Questions) -> Iterator[Verdict]:
        assert not judged.model.training
        yield Verdict(
            judge="ruler",
            version="1.2",
            task="size",
            metric="mean",
            value=measured(judged.model),
            stderr=0.25,
            merged=questions.merged,
            examples=questions.limit or 10,
            of=10,
        )


@pytest.fixture(autouse=True)
def _ruler(own_place: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(JUDGES, "_things", dict(JUDGES._things))
    register_judge("ruler")(Ruler)


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    """A copy of the finished run of the tiny BERT."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def cell_of(run: Path, method: str) -> str:
    cells = RunFolder(run).run_record().plan.cells
    return next(cell.id for cell in cells if cell.method == method)


def test_rows_are_judged_on_their_base_with_their_delta(run: Path, bert: Path) -> None:
    told: list[str] = []
    found = evaluate(run, "ruler", "size", tell=told.append)
    values = {method: each[0].value for (method, _, _), each in found.results.verdicts.items()}
    assert list(values) == ["head", "adapter", "lora", "fusion"] and found.failed == ()
    assert len(set(values.values())) == 4
    assert values["head"] == measured(dk.load_base(bert, task="classify", labels=2).eval())
    kept = RunFolder(run).kept_delta(cell_of(run, "lora"))
    assert kept is not None
    model = dk.load_base(bert, task="classify", labels=2).eval()
    dk.load(model, run / kept.folder)
    assert values["lora"] == measured(model)
    assert told[0].startswith("majority predicts a constant")
    assert told[1].startswith("full is not judged: its weights are as large as the base")
    assert told[2] == f"head (fp32, seed 0): {TITLE} {values['head']:.4f}"


def test_merged_rows_score_the_same_and_have_a_column_of_their_own(run: Path) -> None:
    evaluate(run, "ruler", "size", rows=("head", "lora"))
    results = evaluate(run, "ruler", "size", rows=("head", "lora"), merged=True).results
    for method in ("head", "lora"):
        plain, merged = results.verdicts[method, "fp32", 0]
        assert (plain.title, merged.title) == (TITLE, f"{TITLE}, merged")
        assert f"{plain.value:.4f}" == f"{merged.value:.4f}"


def test_every_report_shows_them(run: Path, deltakit: Callable[..., Any], tmp_path: Path) -> None:
    ended = deltakit("evaluate", run, "--with", "ruler", "--tasks", "size", "--rows", "lora,head")
    assert ended.code == 0, ended
    value = f"{RunFolder(run).verdicts(cell_of(run, 'lora'))[0].value:.4f} ± 0.2500"
    assert value in ended.out and "ruler:" in ended.out
    for name in ("table.md", "table.html", "table.tex", "report.html"):
        text = (run / name).read_text(encoding="utf-8")
        assert TITLE in text and value.split(" ")[0] in text, name
    legend = "ruler 1.2: the score and its own standard error. The row head is the base without"
    assert legend in (run / "table.md").read_text(encoding="utf-8")
    with (run / "judged.csv").open(encoding="utf-8", newline="") as file:
        lines = [(row["method"], row["stderr"], row["of"]) for row in csv.DictReader(file)]
    assert lines == [("head", "0.25", "10"), ("lora", "0.25", "10")]
    table = report_folder(run).table.set_index("method")
    assert table.loc["lora", f"{TITLE} stderr"] == 0.25 and table[TITLE].notna().sum() == 2
    joined = report_joined([run], tmp_path / "joined")
    assert joined.verdicts == report_folder(run).verdicts
    assert TITLE in (tmp_path / "joined" / "table.md").read_text(encoding="utf-8")
    again = evaluate(tmp_path / "joined", "ruler", "size", rows=("adapter",), limit=3).results
    assert again.verdicts["adapter", "fp32", 0][0].title == f"{TITLE}, first 3"


def test_a_row_that_cannot_be_judged_stops_no_other(
    run: Path, deltakit: Callable[..., Any]
) -> None:
    ended = deltakit("evaluate", run, "--with", "ruler", "--tasks", "size", "--merged")
    assert ended.code == 1
    assert "adapter (fp32, seed 0) failed: NotMergeable: Bottleneck at 'encoder" in ended.out
    told = next(line for line in ended.out.splitlines() if "NotMergeable" in line)
    assert "does not fold into a weight" in told
    assert told.endswith("Or name this row in a call without --merged.")
    judged = {method for method, _, _ in report_folder(run).verdicts}
    assert judged == {"head", "lora", "fusion"}


def test_a_stopped_evaluation_goes_on(
    run: Path, deltakit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", run, "--with", "ruler", "--tasks", "size")
    asked: list[int] = []

    def judge(self: Ruler, judged: JudgedModel, questions: Questions) -> list[Verdict]:
        asked.append(len(asked))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return list(Ruler.judge(self, judged, questions))

    class Stopping(Ruler):
        pass

    monkeypatch.setattr(Stopping, "judge", judge)
    monkeypatch.setitem(JUDGES._things, "ruler", Stopping)
    ended = deltakit(*command)
    assert ended.code == 130
    assert ended.err.endswith("judged rows are kept; the same command goes on there.\n")
    assert {row for row in ("head", "adapter") if RunFolder(run).verdicts(cell_of(run, row))}
    ended = deltakit(*command)
    assert ended.code == 0 and ended.out.count("judged already") == 2 and len(asked) == 5
    assert deltakit(*command).code == 0 and len(asked) == 9  # a command that has ended begins anew


def lose_delta(run: Path) -> None:
    shutil.rmtree(run / "deltas")


def lose_record(run: Path) -> None:
    (run / "cells" / f"{cell_of(run, 'lora')}.delta.json").unlink()


def lose_cell(run: Path) -> None:
    (run / "cells" / f"{cell_of(run, 'lora')}.json").unlink()


def other_model(run: Path) -> None:
    content = json.loads((run / "run.json").read_text())
    content["model"]["fingerprint"] = "another"
    (run / "run.json").write_text(json.dumps(content))


def nothing(run: Path) -> None:
    del run


@pytest.mark.parametrize(
    ("options", "change", "words"),
    [
        (["--with", "rular"], nothing, "Did you mean 'ruler'?"),
        (["--rows", "lorra"], nothing, "unknown row 'lorra'. Did you mean 'lora'?"),
        (["--rows", "majority"], nothing, "there is no model to judge"),
        (["--rows", "full"], nothing, "as large as the base, and not kept"),
        (["--seed", "3"], nothing, "--seed 3: the run has the seeds 0."),
        (["--shots", "2"], nothing, "--shots 2 is not for --with ruler. Leave it out."),
        (["--limit", "0"], nothing, "limit must be a whole number above zero"),
        (["--tasks", "weight"], nothing, "the ruler has no task 'weight'"),
        (["--tasks", ","], nothing, "--tasks is empty"),
        (["--rows", "lora"], lose_delta, "repeat the `deltakit compare` command, which trains"),
        (["--rows", "lora"], lose_record, "lora has no record of its delta"),
        (["--rows", "lora"], lose_cell, "lora is not finished: repeat"),
        ([], other_model, "is not the one that the run was trained on"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_loaded(
    run: Path,
    options: list[str],
    change: Callable[[Path], None],
    words: str,
    deltakit: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deltakit.compare.run.judges import rows

    monkeypatch.setattr(rows, "read_base", lambda *_, **__: pytest.fail("loaded"))
    change(run)
    assert words in deltakit("evaluate", run, "--with", "ruler", "--tasks", "size", *options).line
    assert not (run / "judged.csv").exists()


def test_a_library_that_is_missing(
    run: Path, deltakit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for judge, name in ((LmEval, "lm-eval"), (Mteb, "mteb")):
        monkeypatch.setattr(judge, "package", "no_such_package")
        line = deltakit("evaluate", run, "--with", name, "--tasks", "any").line
        assert "is not installed: " in line and f'pip install -e ".[{name}]"' in line
        with pytest.raises(MissingExtra):
            judge().version()


def test_models_that_a_judge_is_not_for(run: Path) -> None:
    from transformers import AutoConfig

    with pytest.raises(InvalidConfig, match="models that write texts; this run loaded 'mine'"):
        LmEval().check_model("mine", "classify", AutoConfig.for_model("bert"))
    with pytest.raises(InvalidConfig, match="encoders of texts; this run loaded 'mine'"):
        Mteb().check_model("mine", "causal", AutoConfig.for_model("llama"))
    with pytest.raises(InvalidConfig, match="do not see those behind them"):
        Mteb().check_model("mine", "classify", AutoConfig.for_model("llama"))
    Mteb().check_model("mine", "classify", AutoConfig.for_model("bert"))
