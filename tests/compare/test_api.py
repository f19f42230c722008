"""Whole comparisons: what a run folder holds, going on after a stop, failed cells."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.compare.api import report_folder, run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import COLUMNS
from deltakit.compare.run import cell
from deltakit.compare.run.failures import Failures
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.train import TrainingFailed
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.run_folder import RunFolder
from deltakit.core.method import CLASSES, METHODS, UNIFIED_VIEW

REPORTS = (
    "run.json",
    "results.csv",
    "table.md",
    "table.tex",
    "table.html",
    "pareto.png",
    "pareto.svg",
    "report.html",
)
CONTRACT = (
    "method,base,task,seed,lr,status,metric,score,score_low,score_high,n_test,trained_params,"
    "trained_pct,deployed_params,head_params,delta_bytes,base_bytes,train_step_ms,"
    "train_step_vs_full,train_peak_bytes,infer_peak_bytes,latency_ms_b1,latency_vs_base_b1,"
    "latency_ms_b8,latency_vs_base_b8,merged_latency_vs_base_b1,train_seconds,stage1_seconds"
)
ROWS = ["majority", "head", "full", "adapter", "lora", "fusion"]
MEASURED = CONTRACT.split(",")[11:-2] + ["train_seconds"]
MEASURED.remove("merged_latency_vs_base_b1")
SCORES = ("score", "score_low", "score_high", "n_test", "status", "metric")
COUNTS = ("trained_params", "trained_pct", "deployed_params", "head_params", "delta_bytes")


def same(folder: Path, other: Path, read: SimpleNamespace) -> None:
    """Same rows, scores, counts and predictions; times may differ."""
    ours, theirs = read.results(folder), read.results(other)
    assert list(ours) == list(theirs)
    for method, row in ours.items():
        for column in (*SCORES, *COUNTS, "train_steps", "final_loss", "train_peak_bytes"):
            assert row[column] == theirs[method][column], (method, column)
    assert read.predictions(folder) == read.predictions(other)


# ---------------------------------------------------------------------------- the run folder


def test_the_run_folder_holds_every_file_of_the_contract(finished: Any) -> None:
    assert finished.ended.code == 0, finished.ended
    for name in REPORTS:
        assert (finished.folder / name).stat().st_size > 0, name
    said = json.loads((finished.folder / "run.json").read_text())
    ids = [each["id"] for each in said["plan"]["cells"]]
    cells = finished.folder / "cells"
    endings = (".json", ".predictions.csv")
    inside = {
        f"{each['id']}.diagnostics.json"
        for each in said["plan"]["cells"]
        if each["method"] not in ("majority", "head")  # these leave the base as it is
    } | {f"{each['id']}.pace.json" for each in said["plan"]["cells"] if each["rates"]}
    inside |= {f"{each}.scores.npy" for each in ids}
    inside |= {
        f"{each['id']}.delta.json"
        for each in said["plan"]["cells"]
        if each["method"] not in ("majority", "full")  # full fine-tuning's weights are not kept
    }
    assert {path.name for path in cells.iterdir()} == inside | {
        f"{each}{ending}" for each in ids for ending in endings
    }


def test_what_happens_inside_each_model_is_recorded_and_shown(finished: Any) -> None:
    folder = RunFolder(finished.folder)
    cells = folder.run_record().plan.cells
    found = {cell.method: folder.extras(cell.id, "diagnostics") or {} for cell in cells}
    assert set(found["full"]) == {"texts", "moved"}
    assert set(found["lora"]) == {"texts", "moved", "changes", "by_dropped"}
    assert {key.split(".")[-1] for key in found["lora"]["changes"]} == {"q", "v"}
    for shares in found["fusion"]["attention"].values():
        assert set(shares) == {"shop", "trade", "two"}
    assert list(found["fusion"]["by_members"]) == ["1", "2", "3"]
    text = (finished.folder / "report.html").read_text(encoding="utf-8")
    for words in ("lora · attn.q", "fusion · block.out · trade", "× with 3 members"):
        assert words in text


def test_results_begin_with_the_columns_of_the_contract(finished: Any) -> None:
    header = (finished.folder / "results.csv").read_text().splitlines()[0]
    assert header.startswith(CONTRACT + ",")
    assert header == ",".join(COLUMNS)


def test_rows_are_the_baselines_then_the_asked_methods(finished: Any) -> None:
    assert list(finished.rows) == ROWS
    assert {row["status"] for row in finished.rows.values()} == {"done"}
    assert {row["n_test"] for row in finished.rows.values()} == {"36"}
    for row in finished.rows.values():
        assert float(row["score_low"]) < float(row["score"]) < float(row["score_high"])


def test_what_was_measured_is_there_and_what_does_not_exist_is_empty(finished: Any) -> None:
    for method, row in finished.rows.items():
        for column in MEASURED:
            assert (row[column] == "") == (method == "majority"), (method, column)
        for column in ("reason", *(("lr",) if method == "majority" else ())):
            assert row[column] == "", (method, column)
    merged = {m for m, row in finished.rows.items() if row["merged_latency_vs_base_b1"]}
    assert merged == {"lora", "fusion"}
    assert {m for m, row in finished.rows.items() if row["merge_ms"]} == {"lora", "fusion"}
    for column in ("load_ms", "swap_ms"):
        handled = {m for m, row in finished.rows.items() if row[column]}
        assert handled == {"head", "adapter", "lora", "fusion"}, column
    assert {m for m, row in finished.rows.items() if row["stage1_seconds"]} == {"fusion"}


def test_counts_are_those_of_the_methods(finished: Any) -> None:
    rows = finished.rows
    d, layers = 16, 2
    base = int(rows["full"]["trained_params"])
    assert rows["head"]["trained_params"] == rows["head"]["deployed_params"] == "0"
    assert float(rows["full"]["trained_pct"]) == 100
    adapter = layers * (2 * d * (d // 16) + d // 16 + d)
    assert int(rows["adapter"]["trained_params"]) == adapter
    assert int(rows["lora"]["trained_params"]) == layers * 2 * 8 * 2 * d
    fusion = layers * (3 * d * d + 2 * d)
    assert int(rows["fusion"]["trained_params"]) == fusion
    assert int(rows["fusion"]["deployed_params"]) == fusion + 3 * adapter
    for method in ("adapter", "lora", "fusion"):
        share = 100 * int(rows[method]["trained_params"]) / base
        assert float(rows[method]["trained_pct"]) == pytest.approx(share)
    assert len({rows[m]["head_params"] for m in ROWS[1:]}) == 1
    assert float(rows["full"]["train_step_vs_full"]) == 1


def test_memory_is_that_of_what_is_trained(finished: Any) -> None:
    rows = finished.rows
    for method in ROWS[1:]:
        row = rows[method]
        trained = int(row["trained_params"]) + int(row["head_params"])
        assert int(row["train_gradient_bytes"]) <= 4 * trained
        assert int(row["train_optimizer_bytes"]) >= 8 * int(row["trained_params"])
        parts = ("train_weight_bytes", "train_optimizer_bytes")
        assert int(row["train_peak_bytes"]) > sum(int(row[part]) for part in parts)
    gradients = {m: int(rows[m]["train_gradient_bytes"]) for m in ROWS[1:]}
    assert gradients["head"] < gradients["lora"] < gradients["full"]


def test_the_task_is_learned_from_its_words(finished: Any) -> None:
    assert float(finished.rows["full"]["score"]) > float(finished.rows["majority"]["score"])


def test_predictions_are_beside_each_cell_and_make_its_score(finished: Any) -> None:
    for path in (finished.folder / "cells").glob("?" * 16 + ".json"):
        stored = json.loads(path.read_text())
        table = path.with_suffix(".predictions.csv").read_text()
        assert table.startswith("row,label,predicted\n")
        rows = list(csv.DictReader(table.splitlines()))
        assert [row["row"] for row in rows] == [str(index) for index in range(36)]
        right = sum(row["label"] == row["predicted"] for row in rows)
        assert stored["result"]["score"] == right / 36


def test_a_metric_of_probabilities_is_a_score_like_any_other(
    asked: Callable[..., Any], tmp_path: Path
) -> None:
    ended = run_plan(
        build_plan(asked("lora", metric="log_loss", trials=2, lr=None)), tmp_path / "a"
    )
    assert not ended.failures and {row.metric for row in ended.results} == {"log_loss"}
    for row in ended.results:
        found = ended.predictions[row.method, row.base, row.seed]
        assert found.scores is not None and found.classes == ("neg", "pos")
        assert row.score == METRICS.get("log_loss").value(found)
        assert row.score_low is not None and row.score_low < row.score
    text = (tmp_path / "a" / "table.md").read_text()
    assert "log loss, lower is better," in text
    assert report_folder(tmp_path / "a").predictions == ended.predictions


def test_run_json_says_what_was_run_on_what(finished: Any, bert: Path) -> None:
    said = json.loads((finished.folder / "run.json").read_text())
    assert [each["method"] for each in said["plan"]["cells"]] == ROWS
    assert said["plan"]["budget"]["epochs"] == 2
    assert said["model"]["name"] == str(bert) and said["model"]["fingerprint"]
    assert set(said["tasks"]) == {"two", "shop", "trade"}
    assert said["tasks"]["two"]["test"] == 36
    assert said["versions"]["torch"] and said["machine"]["cores"]
    assert said["roles"] == {"floor": "head", "ceiling": "full"}


def test_full_fine_tuning_leaves_no_weights_behind_and_the_others_do(finished: Any) -> None:
    kept = list((finished.folder / "deltas").glob("*/delta.safetensors"))
    assert len(kept) == 4  # head, adapter, lora, fusion
    assert len(list((finished.cache / "deltas").iterdir())) == 2  # the source tasks'


def test_the_targets_own_adapter_is_trained_once(finished: Any) -> None:
    # head, full, adapter, lora, two source tasks and the fusion; its third member is the adapter.
    assert finished.trainings == 7


# ------------------------------------------------------------------------- the same once more


def test_the_same_request_again_trains_nothing_and_writes_the_same_table(
    asked: Callable[..., Any], trainings: Any, tmp_path: Path
) -> None:
    plan = build_plan(asked("lora"))
    first = run_plan(plan, tmp_path / "run")
    before = (tmp_path / "run" / "results.csv").read_bytes()
    count = trainings.count
    again = run_plan(build_plan(asked("lora")), tmp_path / "run")
    assert trainings.count == count == 3
    assert (first.reused, again.reused) == (0, 4)
    assert (tmp_path / "run" / "results.csv").read_bytes() == before
    assert again.results == first.results


def test_a_fresh_start_elsewhere_gives_the_same_scores_and_predictions(
    finished: Any, asked: Callable[..., Any], trainings: Any, tmp_path: Path, read: Any
) -> None:
    run_plan(build_plan(asked("adapter,lora,fusion")), tmp_path / "other")
    assert trainings.count == 7
    same(tmp_path / "other", finished.folder, read)


def test_source_deltas_are_kept_between_runs(
    finished: Any,
    asked: Callable[..., Any],
    trainings: Any,
    tmp_path: Path,
    read: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DELTAKIT_CACHE", str(finished.cache))
    run_plan(build_plan(asked("fusion")), tmp_path / "run")
    # head, full, the target's own adapter, the fusion
    assert trainings.count == 4
    here = read.results(tmp_path / "run")["fusion"]
    there = finished.rows["fusion"]
    assert here["score"] == there["score"]
    # What is not trained again still cost what it cost.
    assert float(here["stage1_seconds"]) > 0


def test_without_an_out_folder_the_same_request_finds_its_own(
    asked: Callable[..., Any], trainings: Any
) -> None:
    first = run_plan(build_plan(asked("head")))
    assert first.folder.parent == Path("runs")
    again = run_plan(build_plan(asked("head")))
    assert again.folder == first.folder
    other = run_plan(build_plan(asked("head", lr=2e-2)))
    assert other.folder != first.folder


# ---------------------------------------------------------------------------------- stopping


@pytest.mark.parametrize("number", [6, 7], ids=["second source", "fusion"])
def test_an_interrupted_run_goes_on_where_it_stopped(
    number: int,
    finished: Any,
    asked: Callable[..., Any],
    trainings: Any,
    tmp_path: Path,
    read: Any,
) -> None:
    plan, out = build_plan(asked("adapter,lora,fusion")), tmp_path / "run"
    trainings.bad[number] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan, out)
    done = {path.name: path.read_bytes() for path in (out / "cells").iterdir()}
    assert sum(name.endswith(".predictions.csv") for name in done) == min(number, 5)
    run_plan(build_plan(asked("adapter,lora,fusion")), out)
    assert trainings.count == 7 + 1
    assert all((out / "cells" / name).read_bytes() == content for name, content in done.items())
    same(out, finished.folder, read)
    assert read.leftovers(tmp_path) == []


@pytest.mark.parametrize("what", ["training_cost", "inference_cost"])
def test_a_training_that_is_over_is_not_repeated(
    what: str,
    finished: Any,
    asked: Callable[..., Any],
    trainings: Any,
    tmp_path: Path,
    read: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan, out = build_plan(asked("fusion")), tmp_path / "run"
    with monkeypatch.context() as patch:
        calls = Stopping(getattr(cell, what), stop=3)  # the fusion, after head and full
        patch.setattr(cell, what, calls)
        with pytest.raises(KeyboardInterrupt):
            run_plan(plan, out)
    count = trainings.count
    run_plan(build_plan(asked("fusion")), out)
    assert trainings.count == count == 6
    ours, theirs = read.results(out)["fusion"], finished.rows["fusion"]
    for column in (*SCORES, *COUNTS, "train_gradient_bytes", "train_optimizer_bytes"):
        assert ours[column] == theirs[column], column


def test_what_comes_from_the_store_is_measured_like_what_is_trained(
    asked: Callable[..., Any], llama: Path, tmp_path: Path, read: Any
) -> None:
    plan, out = build_plan(asked("head", model=str(llama))), tmp_path / "run"
    run_plan(plan, out)
    first = read.results(out)["head"]
    shutil.rmtree(out / "cells")
    run_plan(plan, out)
    again = read.results(out)["head"]
    for column in (*SCORES, *COUNTS, "train_activation_bytes", "infer_peak_bytes"):
        assert again[column] == first[column], column


class Stopping:
    """Interrupts at the n-th call."""

    def __init__(self, function: Callable[..., Any], stop: int) -> None:
        self.function, self.left = function, stop

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return self.function(*args, **kwargs)


# --------------------------------------------------------------------------------- failing


def test_a_loss_that_is_not_finite_fails_its_cell_with_the_reason(
    asked: Callable[..., Any], tmp_path: Path, read: Any
) -> None:
    outcome = run_plan(build_plan(asked("lora", lr=1e30)), tmp_path / "run")
    rows = read.results(tmp_path / "run")
    assert rows["majority"]["status"] == "done"
    assert rows["full"]["status"] == "failed"
    assert "loss is" in rows["full"]["reason"] and "--lr" in rows["full"]["reason"]
    assert rows["full"]["score"] == rows["full"]["trained_params"] == ""
    assert "full" in [result.method for result in outcome.failures]
    for name in REPORTS:
        assert (tmp_path / "run" / name).stat().st_size > 0, name


def test_a_failed_cell_is_recorded_and_runs_again_on_request(
    asked: Callable[..., Any], trainings: Any, tmp_path: Path, read: Any
) -> None:
    out = tmp_path / "run"
    trainings.bad[3] = MemoryError("no room for 3 GiB")  # adapter, after head and full
    outcome = run_plan(build_plan(asked("adapter,lora")), out)
    assert [(f.method, f.status, f.reason) for f in outcome.failures] == [
        ("adapter", "failed", "out of memory: no room for 3 GiB")
    ]
    before = read.results(out)
    assert [row["status"] for row in before.values()] == ["done"] * 3 + ["failed", "done"]
    assert trainings.count == 4
    kept = run_plan(build_plan(asked("adapter,lora")), out)
    assert kept.results == outcome.results and kept.reused == 5 and trainings.count == 4
    again = run_plan(build_plan(asked("adapter,lora")), out, failures=Failures.RETRY)
    assert again.failures == () and again.reused == 4
    assert trainings.count == 5
    after = read.results(out)
    assert after["adapter"]["status"] == "done" and after["adapter"]["reason"] == ""
    assert {m: after[m] for m in before if m != "adapter"} == {
        m: before[m] for m in before if m != "adapter"
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "out of memory"),
        (MemoryError("no room"), "out of memory: no room"),
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory: CUDA out of memory."),
        (
            RuntimeError("can't allocate memory: 3 GiB"),
            "out of memory: can't allocate memory: 3 GiB",
        ),
        (TrainingFailed("the loss is nan at step 2"), "the loss is nan at step 2"),
        (RuntimeError("it broke\nin two"), "RuntimeError: it broke"),
        (KeyError("gone"), "KeyError: 'gone'"),
    ],
    ids=repr,
)
def test_a_reason_is_one_line(error: Exception, reason: str) -> None:
    assert cell.error_line(error).removesuffix(": ") == reason


def test_a_failed_member_fails_the_fusion_and_nothing_else(
    asked: Callable[..., Any], trainings: Any, tmp_path: Path
) -> None:
    trainings.bad[4] = MemoryError("no room")  # the second source, after head, full and the first
    outcome = run_plan(build_plan(asked("fusion")), tmp_path / "run")
    assert [failure.method for failure in outcome.failures] == ["fusion"]
    assert outcome.failures[0].reason == "out of memory: no room"


# ----------------------------------------------------------------- other models, other tasks


def test_a_decoder_without_a_padding_token(
    asked: Callable[..., Any], llama: Path, tmp_path: Path
) -> None:
    outcome = run_plan(build_plan(asked("adapter,lora,fusion", model=str(llama))), tmp_path / "run")
    assert outcome.failures == ()
    assert [result.method for result in outcome.results] == ROWS


def test_six_classes(asked: Callable[..., Any], tasks: SimpleNamespace, tmp_path: Path) -> None:
    outcome = run_plan(build_plan(asked("adapter", task=str(tasks.six))), tmp_path / "run")
    assert outcome.failures == ()
    majority, head = outcome.results[:2]
    assert majority.score == pytest.approx(1 / 6)
    assert {label for p in outcome.predictions.values() for label in p.labels} == set(range(6))
    assert head.head_params == 6 * 16 + 6  # the pooler is part of the base


def test_pairs_with_columns_of_ones_own(
    asked: Callable[..., Any], tasks: SimpleNamespace, tmp_path: Path
) -> None:
    request = asked(
        "lora",
        task=str(tasks.pairs),
        text_column="first",
        pair_column="second",
        label_column="verdict",
    )
    plan = build_plan(request)
    assert plan.task.has_pairs
    assert run_plan(plan, tmp_path / "run").failures == ()


def test_several_seeds_are_several_cells(asked: Callable[..., Any], tmp_path: Path) -> None:
    outcome = run_plan(build_plan(asked("head", seeds=2)), tmp_path / "run")
    rows = [(result.method, result.seed) for result in outcome.results]
    assert sorted(rows) == [(m, seed) for m in ("full", "head", "majority") for seed in (0, 1)]
    assert [seed for _, seed in rows] == [0, 0, 0, 1, 1, 1]
    assert len(outcome.predictions) == 6


# ------------------------------------------------------------------ a delta that exists already


def test_a_source_delta_can_be_given_as_a_folder(
    finished: Any, asked: Callable[..., Any], trainings: Any, tmp_path: Path, bert: Path, read: Any
) -> None:
    context, trade = build_plan(asked("fusion")).cells[-1].training.members[:2]
    folder = finished.cache / "deltas" / context.training.id
    request = asked("fusion", source_tasks=(f"shop={folder}",))
    run_plan(build_plan(request), tmp_path / "run")
    row = read.results(tmp_path / "run")["fusion"]
    assert row["status"] == "done"
    assert row["stage1_seconds"] == ""  # nobody knows what the given one took
    assert trainings.count == 4  # head, full, the target's own adapter, the fusion


# ------------------------------------------------------------ a method from outside the package


class Shift(dk.Delta):
    """Adds a learned vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.shift.expand_as(x)


@pytest.fixture
def toy() -> Iterator[str]:
    """A method of one's own, known as ``toy`` while a test runs."""

    @dk.register_method("toy")
    @dataclass(frozen=True, kw_only=True)
    class Toy(dk.Method):
        scale: float = 1.0
        paper: ClassVar[dk.Paper] = UNIFIED_VIEW
        learning_rate: ClassVar[float] = 1e-2

        def placements(self) -> tuple[dk.Placement, ...]:
            return (
                dk.Placement(
                    site=dk.Site.FFN_OUT,
                    make_delta=lambda handle: Shift(handle.d_out),
                    insertion=dk.Insertion.SEQUENTIAL,
                    scale=self.scale,
                ),
            )

    yield "toy"
    METHODS.remove("toy")
    CLASSES.remove("Toy")


def test_a_method_from_outside_is_compared_like_any_other(
    toy: str, asked: Callable[..., Any], tmp_path: Path, deltakit: Callable[..., Any]
) -> None:
    outcome = run_plan(build_plan(asked("toy[scale=2.0],fusion[member=toy]")), tmp_path / "run")
    assert outcome.failures == ()
    row = next(result for result in outcome.results if result.method == "toy[scale=2.0]")
    assert row.trained_params == row.deployed_params == 2 * 16
    assert row.lr == 1e-2 and row.train_step_vs_full is not None
    assert "toy" in deltakit("methods").out
    assert deltakit("cite", "toy").code == 0


def test_the_toy_is_gone_afterwards(deltakit: Callable[..., Any]) -> None:
    assert "toy" not in deltakit("methods").out


# -------------------------------------------------------------------------- progress, reports


class Told(Silent):
    """Adds up what a run tells."""

    def __init__(self) -> None:
        self.total = self.units = 0
        self.titles: list[str] = []
        self.outcomes: list[str] = []

    def begin(self, total: int, reused: int) -> None:
        self.total = total

    def start(self, title: str, units: int) -> None:
        self.titles.append(title)

    def advance(self, units: int = 1) -> None:
        self.units += units

    def finish(self, outcome: str) -> None:
        self.outcomes.append(outcome)


def test_progress_is_told_every_cell_and_step(asked: Callable[..., Any], tmp_path: Path) -> None:
    told, opened = Told(), []
    run_plan(build_plan(asked("lora")), tmp_path / "run", told, opened=opened.append)
    assert opened == [tmp_path / "run"]
    assert told.titles == ["majority", "head", "full", "lora"]
    assert all("% in" in outcome for outcome in told.outcomes)
    steps = 3 * 6  # 48 examples in batches of 16, twice
    assert told.units == 1 + steps
    assert told.total == 1 + steps + 3 * cell.MEASURE_UNITS


def test_reports_are_written_anew_from_the_cells(finished: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    before = {name: (copy / name).read_bytes() for name in ("results.csv", "table.md", "table.tex")}
    for name in REPORTS[1:]:
        (copy / name).unlink()
    outcome = report_folder(copy)
    assert [result.method for result in outcome.results] == ROWS
    assert {name: (copy / name).read_bytes() for name in before} == before
    assert all((copy / name).is_file() for name in REPORTS)


# ------------------------------------------------------------------------------------ bases


def test_a_comparison_on_several_bases(asked: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "bases"
    plan = build_plan(asked("lora,ia3", bases=("fp32", "int8", "nf4")))
    ended = run_plan(plan, folder, Silent())
    assert not ended.failures
    rows = {(row.method, row.base): row for row in ended.results}
    for method in ("head", "lora"):
        counts = {rows[method, base].trained_params for base in ("fp32", "int8", "nf4")}
        assert len(counts) == 1, "what is packed is still counted one by one"
    full, int8, nf4 = (rows["lora", base] for base in ("fp32", "int8", "nf4"))
    assert full.base_bytes > int8.base_bytes  # nf4's codebooks outweigh a tiny model
    assert full.train_weight_bytes > int8.train_weight_bytes
    for row in (full, int8, nf4):
        assert row.train_weight_bytes >= row.base_bytes
    assert all(row.train_step_vs_full for row in (full, int8, nf4))
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "vs full precision" in text and "full has no row on int8, nf4" in text
