"""Several amounts of training data: nested examples, a table, a plot, and what is refused."""

import csv
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltakit as dk
from deltakit.compare.plan.draft import draft_of
from deltakit.compare.plan.request import request_of
from deltakit.compare.records.result import CellResult
from deltakit.compare.report import sizes as report_sizes
from deltakit.compare.report.sizes import sizes_html, sizes_md, sizes_page, sizes_plot
from deltakit.compare.report.summary import DisplayedScore, RowSummary
from deltakit.compare.run.train import steps_of
from deltakit.compare.sizes import check_enough, check_sizes, sized, sizes_in
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.stats.significance import Difference
from deltakit.errors import InvalidConfig


@pytest.fixture(autouse=True)
def _apart(own_place: None) -> None:
    """Stores and locks are in the test's own folder."""


def row(method: str, score: float, gap: float, p: float) -> RowSummary:
    done = CellResult(method=method, base="fp32", task="t", seed=0, metric="accuracy", score=score)
    far = Difference(points=gap, low=gap, high=gap, p=p, detectable=None, about="models")
    return RowSummary(
        method=method,
        base="fp32",
        done=(done,),
        failed=(),
        score=DisplayedScore(mean=100 * score, low=None, high=None, seeds=1),
        vs_floor=None if method == "head" else far,
        vs_ceiling=None,
    )


BY_SIZE = {
    50: [row("head", 0.5, 0, 1), row("lora", 0.45, -5, 0.01), row("adapter", 0.6, 10, 0.03)],
    200: [row("head", 0.6, 0, 1), row("lora", 0.8, 20, 0.001), row("adapter", 0.7, 10, 0.2)],
}


def test_the_table_says_where_a_row_first_beats_the_floor() -> None:
    *lines, _, said = sizes_md(BY_SIZE, METRICS.get("accuracy"), "head").splitlines()
    assert said == "With one seed, p is about these trained models, and not about other seeds."
    cells = {line.split("|")[1].strip(): [c.strip() for c in line.split("|")] for line in lines}
    assert cells["accuracy"][2:5] == ["50", "200", "first beats head at"]
    assert cells["head"][2:5] == ["50.0", "60.0", "–"]
    assert cells["lora"][2:5] == ["45.0", "80.0", "200 (p = 0.001)"]
    assert cells["adapter"][2:5] == ["60.0", "70.0", "50 (p = 0.03)"]


def test_the_plot_does_not_change_from_one_run_to_the_next() -> None:
    one, two = (sizes_plot(BY_SIZE, METRICS.get("accuracy"), "task") for _ in range(2))
    assert one == two and one.png[:4] == b"\x89PNG" and one.svg.rstrip().endswith("</svg>")


def test_rows_of_one_base_are_drawn_apart_under_their_methods(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn: dict[str, list[float]] = {}
    draw = report_sizes._draw

    def noted(axes: Any, number: int, label: str, scores: Any) -> None:
        drawn[label] = [*scores]
        draw(axes, number, label, scores)

    monkeypatch.setattr(report_sizes, "_draw", noted)
    sizes_plot(BY_SIZE, METRICS.get("accuracy"), "task")
    assert list(drawn) == ["head", "lora", "adapter"]
    firsts = [places[0] for places in drawn.values()]
    assert firsts == sorted(set(firsts)) and firsts == pytest.approx([50] * 3, rel=0.03)


def test_the_page_has_the_plot_the_table_and_each_run() -> None:
    metric = METRICS.get("accuracy")
    drawn = sizes_plot(BY_SIZE, metric, "task").svg
    answers = {50: "adapter <is> ahead.", 200: "lora is ahead."}
    page = sizes_page(BY_SIZE, metric, "head", title="task · model", answers=answers, svg=drawn)
    assert '<div class="plot"><svg' in page and "http://" not in page
    assert "<td>45.0</td><td>80.0</td><td>200 (p = 0.001)</td>" in page
    for size, answer in ((50, "adapter &lt;is&gt; ahead."), (200, "lora is ahead.")):
        assert f'<a href="train-{size}/report.html">{size} examples</a></dt><dd>{answer}' in page
    assert "With one seed, p is about these trained models" in page
    assert "<td>200 (p = 0.001)" in sizes_html(BY_SIZE, metric, "head")


@pytest.mark.parametrize(
    ("size", "batch", "epochs", "steps"),
    [(50, 16, 3.0, 189), (200, 16, 3.0, 189), (1000, 16, 3.0, 189), (7, 1, 0.1, 100)],
)
def test_equal_steps(size: int, batch: int, epochs: float, steps: int) -> None:
    asked = request_of("lora", {"batch_size": batch, "epochs": epochs})
    assert steps_of(size, sized(asked, size, 1000).budget) == steps
    assert sized(asked, size).budget.epochs == epochs


def test_equal_steps_are_as_many_for_any_number_of_batches() -> None:
    asked = request_of("lora", {"batch_size": 1, "epochs": 3})
    assert {steps_of(size, sized(asked, size, 1000).budget) for size in range(1, 1000)} == {3000}


def test_smaller_runs_have_examples_of_larger_ones(bert: Path, tasks: SimpleNamespace) -> None:
    asked = request_of("lora", {"model": str(bert), "task": str(tasks.two)})
    texts = [set(draft_of(sized(asked, size)).target.train["text"]) for size in (4, 8, 16)]
    assert texts[0] < texts[1] < texts[2]
    tests = [draft_of(sized(asked, size)).target.test["text"][:] for size in (4, 8)]
    assert tests[0] == tests[1]
    with pytest.raises(InvalidConfig, match="--train-sizes 9999: the task .* has"):
        check_enough(draft_of(sized(asked, 9999)), 9999)


@pytest.mark.parametrize(
    ("sizes", "asked", "message"),
    [
        ((8, 8), {}, "--train-sizes 8,8 has a size twice"),
        ((8, 4), {"max_train_samples": 5}, "and --max-train-samples exclude each other"),
        ((), {}, "give whole numbers above zero"),
        ((8, 0), {}, "'8,0': give whole numbers above zero"),
        ((2.5,), {}, "'2.5': give whole numbers above zero"),
    ],
)
def test_sizes_that_are_refused(sizes: Any, asked: Any, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        check_sizes(sizes, asked)


@pytest.mark.slow
def test_a_command_compares_at_several_sizes(
    deltakit: Callable[..., Any], small: list[str], tmp_path: Path
) -> None:
    options = list(small)
    if "--max-train-samples" in options:
        at = options.index("--max-train-samples")
        del options[at : at + 2]
    out = tmp_path / "curve"
    command = ("compare", "--methods", "lora", *options, "--train-sizes", "16,8", "--out", out)
    ended = deltakit(*command)
    assert ended.code == 0, ended
    assert "first beats head at" in ended.out
    with (out / "sizes.csv").open(encoding="utf-8", newline="") as file:
        rows = [(each["train_size"], each["method"]) for each in csv.DictReader(file)]
    methods = ("majority", "head", "full", "lora")
    assert rows == [(size, method) for size in ("8", "16") for method in methods]
    assert {"sizes.md", "sizes.png", "sizes.svg", "train-8", "train-16"} <= {
        each.name for each in out.iterdir()
    }
    before = (out / "sizes.md").read_text()
    assert list(sizes_in(out)) == [8, 16]
    assert deltakit(*command).code == 0
    assert (out / "sizes.md").read_text() == before
    (out / "sizes.md").unlink()
    assert deltakit("report", out).code == 0
    assert (out / "sizes.md").read_text() == before


@pytest.mark.slow
def test_python_compares_at_several_sizes(bert: Path, tasks: SimpleNamespace) -> None:
    found = dk.compare(
        "lora", model=bert, task=tasks.two, train_sizes=[16, 8], equal_steps=True, seeds=1, epochs=2
    )
    assert list(found.runs) == [8, 16] and not found.failures
    assert found.table.train_size.to_list() == [8] * 4 + [16] * 4
    steps = found.frame.groupby("train_size").train_steps.max()
    assert steps[8] == steps[16]
    page = found.page.read_text(encoding="utf-8")
    assert "train-8/report.html" in page and all(
        (found.folder / f"train-{size}" / "report.html").is_file() for size in (8, 16)
    )
    assert "first beats head at" in found._repr_html_()
    assert "first beats head at" in repr(found) and repr(found).endswith("report.html has the plot")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"equal_steps": True}, "--equal-steps is for several sizes"),
        ({"train_sizes": [8, 8]}, "has a size twice"),
        ({"train_sizes": [8], "max_train_samples": 4}, "exclude each other"),
    ],
)
def test_what_python_refuses(
    options: Any, message: str, bert: Path, tasks: SimpleNamespace
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        dk.compare("lora", model=bert, task=tasks.two, **options)


def test_a_row_with_epochs_of_its_own_has_no_equal_steps(
    bert: Path, tasks: SimpleNamespace
) -> None:
    with pytest.raises(InvalidConfig, match="the 4 epochs of the row 'lora@epochs=4' exclude"):
        dk.compare("lora@epochs=4", model=bert, task=tasks.two, train_sizes=[8], equal_steps=True)


def test_a_plan_file_has_the_sizes(
    deltakit: Callable[..., Any], small: list[str], tmp_path: Path
) -> None:
    at = small.index("--max-train-samples")
    file = tmp_path / "mine.yaml"
    file.write_text("methods: lora\ntrain_sizes: [16, 8]\nequal_steps: true\n")
    ended = deltakit("plan", "--config", file, *small[:at], *small[at + 2 :])
    assert ended.code == 0, ended
    sizes = [line.split()[1] for line in ended.out.splitlines() if "training and" in line]
    assert sizes == ["8", "16"]


@pytest.mark.parametrize("value", ["many", "0,5", ""])
def test_sizes_that_are_no_numbers(
    value: str, deltakit: Callable[..., Any], small: list[str]
) -> None:
    ended = deltakit("compare", "--methods", "lora", *small, "--train-sizes", value)
    assert ended.code == 2 and "Traceback" not in ended.err


def test_equal_steps_without_sizes(deltakit: Callable[..., Any], small: list[str]) -> None:
    ended = deltakit("compare", "--methods", "lora", *small, "--equal-steps")
    assert ended.code == 2 and "give --train-sizes too" in ended.err
