import csv
import functools
import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from deltakit.compare.records.result import COLUMNS, CellResult, Predictions
from deltakit.compare.records.run import CellRecord, ModelRecord, PlanRecord, RunRecord
from deltakit.compare.records.trial import Choice, Trial
from deltakit.compare.report import columns, tables
from deltakit.compare.report import cost_views as views
from deltakit.compare.report import number_format as words
from deltakit.compare.report.cost_views import COSTS
from deltakit.compare.report.page import CellExtras
from deltakit.compare.report.pareto import Plot, Point, pareto_front, pareto_plot
from deltakit.compare.report.published import CLAIMS
from deltakit.compare.report.summary import summarise
from deltakit.compare.report.terminal import plain_text, terminal_table
from deltakit.compare.report.write import write_reports
from deltakit.compare.stats.metrics import METRICS, Unit
from deltakit.compare.stats.significance import paired_difference
from deltakit.errors import InvalidConfig

FILES = {
    "results.csv",
    "table.md",
    "table.tex",
    "table.html",
    "pareto.png",
    "pareto.svg",
    "report.html",
}
TITLES = (
    "Method",
    "Score %",
    "vs floor",
    "vs ceiling",
    "Trained params",
    "Deployed params",
    "Delta on disk",
    "Train step × full",
    "Train memory peak",
    "Latency × base, b1",
    "Latency × base, b8",
    "Merged × base, b1",
    "Train time",
    "Stage 1 time",
)
LABELS = (0, 1) * 50
ACCURACY = METRICS.get("accuracy")


def right(n: int) -> Predictions:
    """Predictions of 100 examples of which the first `n` are right."""
    predicted = tuple(y if i < n else 1 - y for i, y in enumerate(LABELS))
    return Predictions(labels=LABELS, predicted=predicted)


def done(method: str, correct: int, **changes: Any) -> CellResult:
    """A finished cell with `correct` of 100 test examples right."""
    fields: dict[str, Any] = {
        "base": "fp32",
        "task": "reviews",
        "seed": 0,
        "lr": 1e-4,
        "metric": "accuracy",
        "score": correct / 100,
        "score_low": correct / 100 - 0.05,
        "score_high": correct / 100 + 0.04,
        "n_test": 100,
        "trained_params": 1_234_567,
        "trained_pct": 5.4321,
        "deployed_params": 1_234_567,
        "delta_bytes": 4_718_592,
        "train_step_vs_full": 0.654,
        "train_peak_bytes": 300 * 2**20,
        "latency_vs_base_b1": 1.084,
        "latency_vs_base_b8": 1.02,
        "train_seconds": 80.0,
    }
    return CellResult(method=method, **{**fields, **changes})


def broken(method: str, reason: str | None = "out of memory", **changes: Any) -> CellResult:
    """A failed cell."""
    fields = {"base": "fp32", "task": "reviews", "seed": 0, **changes}
    return CellResult(method=method, status="failed", reason=reason, **fields)


RUN = RunRecord(
    plan=PlanRecord(
        methods=("small", "big"),
        cells=(CellRecord(id="a", method="small", base="fp32", seed=0, rates=(0.001,)),),
        settings={"lr": None},
    ),
    roles={"floor": "low", "ceiling": "high"},
    model=ModelRecord(name="tiny"),
    created="2025-01-31T12:00:00+00:00",
    versions={"torch": "2.13"},
    notes=("The test split was carved from train.",),
)
NOTHING = {"trained_params": 0, "trained_pct": 0.0, "deployed_params": 0}
ROWS = (
    done("low", 60, **NOTHING),
    done("high", 80, train_step_vs_full=1.0, deployed_params=22_700_000),
    done("small[rank=8]", 78, merged_latency_vs_base_b1=1.0),
    done("mixed", 79, stage1_seconds=4000.0, deployed_params=3_100_000),
    broken("other_one", "no\nluck | <b>at</b> all"),
)
PREDICTIONS = {
    (row.method, row.base, row.seed): right(round(100 * row.score))
    for row in ROWS
    if row.score is not None
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(
        rows: Any = ROWS, predictions: Any = PREDICTIONS, run: Any = RUN, insights: Any = None
    ) -> Path:
        write_reports(tmp_path / "run", rows, predictions, run, insights)
        return tmp_path / "run"

    return write


@functools.cache
def drawn_once(points: tuple[Point, ...], **fields: Any) -> Plot:
    """The same points give the same bytes, which a test below says; drawing takes long."""
    return pareto_plot(points, **fields)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    # The folder's conftest spares the other tests the drawing.
    monkeypatch.setattr(views, "pareto_plot", lambda points, **f: drawn_once(tuple(points), **f))


def read_csv(folder: Path) -> list[dict[str, str]]:
    text = (folder / "results.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def read_markdown(folder: Path) -> list[list[str]]:
    lines = (folder / "table.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in lines if line.startswith("|")]
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table]
    return [[field.strip() for field in line] for line in split]


class Page(HTMLParser):
    """The rows of every table, the attributes and the texts of a page."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.strip()


# ------------------------------------------------------------------------------- write_reports


def test_every_file_is_written_and_nothing_else(write: Write) -> None:
    assert {path.name for path in write().iterdir()} == FILES


def test_the_same_rows_give_the_same_files(write: Write, drawn: None) -> None:
    first = {path.name: path.read_bytes() for path in write().iterdir()}
    assert {path.name: path.read_bytes() for path in write().iterdir()} == first


def test_a_run_without_cells_is_reported(write: Write, drawn: None) -> None:
    folder = write((), {}, RunRecord())
    assert (folder / "results.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert len(read_markdown(folder)) == 2
    Page((folder / "report.html").read_text(encoding="utf-8"))


def test_rows_of_two_tasks_raise(write: Write) -> None:
    with pytest.raises(InvalidConfig, match=r"rows of 2 tasks \(news, reviews\)"):
        write((done("a", 60), done("a", 60, task="news")), {})


# --------------------------------------------------------------------------------- results.csv


def test_csv_has_all_columns_in_order(write: Write) -> None:
    header = (write() / "results.csv").read_text().splitlines()[0]
    assert header == ",".join(COLUMNS)


def test_csv_has_one_row_for_each_cell_in_the_order_given(write: Write) -> None:
    rows = (*ROWS, done("low", 61, seed=1))
    assert [row["method"] for row in read_csv(write(rows))] == [row.method for row in rows]


def test_what_is_absent_is_empty_and_never_zero(write: Write) -> None:
    low, *_, failed = read_csv(write())
    assert low["stage1_seconds"] == ""
    assert low["deployed_params"] == "0"
    assert {failed[name] for name in ("score", "lr", "n_test", "trained_params")} == {""}


def test_whole_numbers_stay_whole_beside_absent_ones(write: Write) -> None:
    assert read_csv(write())[1]["deployed_params"] == "22700000"


def test_floats_keep_every_digit(write: Write) -> None:
    third = 1 / 3
    row = read_csv(write((done("a", 60, score=third),), {}))[0]
    assert float(row["score"]) == third


def test_a_reason_with_line_breaks_comes_back_as_it_was(write: Write) -> None:
    assert read_csv(write())[-1]["reason"] == ROWS[-1].reason


def test_every_row_comes_back_from_the_csv(write: Write) -> None:
    for text, row in zip(read_csv(write()), ROWS, strict=True):
        assert text == {k: "" if v is None else str(v) for k, v in row.to_dict().items()}


# --------------------------------------------------------------------------- the people's table


def test_markdown_has_the_columns_and_a_row_for_each_method(write: Write) -> None:
    header, rule, *rows = read_markdown(write())
    assert tuple(header) == TITLES
    assert {len(row) for row in (rule, *rows)} == {len(TITLES)}
    assert [row[0] for row in rows] == ["low", "high", "small[rank=8]", "mixed", "other_one"]


def test_values_are_in_human_units(write: Write) -> None:
    rows = {row[0]: dict(zip(TITLES, row, strict=True)) for row in read_markdown(write())[2:]}
    small = rows["small[rank=8]"]
    assert small["Score %"] == "78.0 [73.0, 82.0]"
    assert small["vs floor"] == "+18.0 (p < 0.001)"
    assert small["vs ceiling"] == "−2.0 (p 1.00)"  # of two rows: twice 0.50
    assert small["Trained params"] == "1.23 M (5.43 %)"
    assert small["Deployed params"] == "1.23 M"
    assert small["Delta on disk"] == "4.50 MiB"
    assert small["Train step × full"] == "0.65×"
    assert small["Train memory peak"] == "300 MiB"
    assert small["Latency × base, b1"] == "1.08×"
    assert small["Merged × base, b1"] == "1.00×"
    assert small["Train time"] == "1 m 20 s"
    assert small["Stage 1 time"] == "–"
    assert rows["mixed"]["Stage 1 time"] == "1 h 07 m"


def test_a_role_is_not_compared_with_itself(write: Write) -> None:
    low, high = read_markdown(write())[2:4]
    assert (low[2], high[3]) == ("–", "–")
    assert low[3] == "−20.0 (p < 0.001)"


@pytest.mark.parametrize("run", [RunRecord(), RunRecord(roles={"floor": "absent"})])
def test_without_a_floor_there_is_no_difference(run: RunRecord) -> None:
    for summary in summarise(ROWS, PREDICTIONS, run):
        assert (summary.vs_floor, summary.vs_ceiling) == (None, None)


def test_without_predictions_there_is_a_score_and_no_difference() -> None:
    small = summarise(ROWS, {}, RUN)[2]
    assert small.score is not None
    assert small.vs_floor is None


def test_several_seeds_are_one_row_with_their_mean_and_interval() -> None:
    rows = [done("a", 70 + seed, seed=seed, train_seconds=10.0 * seed) for seed in range(3)]
    (summary,) = summarise(rows, {}, RunRecord())
    assert str(summary.score) == "71.0 ± 2.5"
    assert summary.mean("train_seconds") == 10.0


def test_seeds_that_failed_are_counted() -> None:
    rows = [done("a", 70), done("a", 71, seed=1), broken("a", seed=2)]
    (summary,) = summarise(rows, {}, RunRecord())
    assert str(columns.COLUMNS_FOR_PEOPLE[1].cell(summary)).endswith("(2 of 3 seeds)")


def test_bases_have_rows_and_a_column_of_their_own(write: Write) -> None:
    rows = [done(m, n, base=b) for b in ("fp32", "int8") for m, n in (("low", 60), ("a", 70))]
    predictions = {(r.method, r.base, 0): right(round(100 * (r.score or 0))) for r in rows}
    header, _, *lines = read_markdown(write(rows, predictions))
    assert header[:2] == ["Method", "Base"]
    assert [line[:2] for line in lines] == [[m, b] for m in ("low", "a") for b in ("fp32", "int8")]


def perplexities(method: str, nats: float, **changes: Any) -> tuple[CellResult, Predictions]:
    """A finished cell about texts of ten tokens, each of about so many nats."""
    surprise = tuple(10 * nats + n % 7 / 10 for n in range(100))
    predictions = Predictions(labels=(10,) * 100, predicted=surprise)
    value = METRICS.get("perplexity").value(predictions)
    scores = {"score": value, "score_low": value - 0.5, "score_high": value + 0.25}
    return done(method, 0, metric="perplexity", **{**scores, **changes}), predictions


def test_lower_is_better_in_every_view(write: Write, drawn: None) -> None:
    cells = [
        perplexities("low", 3.0, **NOTHING),
        perplexities("small", 2.5, deployed_params=1e5),
        perplexities("waste", 2.7, deployed_params=1e6),
        perplexities("high", 2.0, deployed_params=2e7),
    ]
    rows = [row for row, _ in cells]
    predictions = {(row.method, row.base, 0): found for row, found in cells}
    folder = write(rows, predictions)
    header, _, *lines = read_markdown(folder)
    assert header[1] == "Score ↓"
    found = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert found["small"]["Score ↓"] == "12.5 [12.0, 12.8]"
    assert found["small"]["vs floor"] == "−8.14 (p < 0.001)"
    assert found["small"]["vs ceiling"] == "+4.94 (p < 0.001)"
    said = (folder / "table.md").read_text(encoding="utf-8")
    assert said.startswith("small scores lowest, 12.5 [12.0, 12.8]")
    assert "Score: perplexity, lower is better, on 100 test examples." in said
    assert " is what this run finds 4 times in 5." in said and "points" not in said
    fronted = [
        spot.row
        for spot in views.views(summarise(rows, predictions, RUN), METRICS.get("perplexity"))[
            0
        ].spots
        if spot.on_front
    ]
    assert fronted == ["low", "small", "high"]
    svg = (folder / "pareto.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(svg)
    shown = plain_text(terminal_table(rows, predictions, RUN))
    assert "Score ↓" in shown and "Score %" not in shown


def test_rows_of_two_metrics_share_no_table(write: Write) -> None:
    row, _ = perplexities("a", 3.0)
    with pytest.raises(InvalidConfig, match=r"rows of 2 metrics \(accuracy, perplexity\)"):
        write((row, done("b", 60)), {})


def test_rates_that_were_searched_for_are_shown_and_edges_marked(write: Write) -> None:
    rows = [
        done("a", 60, lr=3e-4, trials=4),
        done("b", 61, lr=3e-2, trials=4, lr_edge="high"),
        done("c", 61, lr=3e-5, trials=4, lr_edge="low"),
    ]
    header, _, *lines = read_markdown(write(rows, {}, RunRecord()))
    found = [dict(zip(header, line, strict=True))["Learning rate"] for line in lines]
    assert found == ["0.0003", "0.03 ↑", "3e-05 ↓"]
    assert "Learning rate" not in read_markdown(write([done("a", 60)], {}, RunRecord()))[0]


def test_a_base_is_compared_with_full_precision(write: Write) -> None:
    rows = [
        done("a", 70, base_bytes=4096, train_step_ms=12.0),
        done("a", 60, base="int8", base_bytes=1024, train_step_ms=6.0),
    ]
    predictions = {("a", "fp32", 0): right(70), ("a", "int8", 0): right(60)}
    full, int8 = summarise(rows, predictions, RunRecord(full_precision="fp32"))
    assert full.vs_full is None
    assert int8.vs_full is not None and int8.vs_full.points == pytest.approx(-10)
    assert int8.vs_full == paired_difference([right(60)], [right(70)])
    header, _, *lines = read_markdown(write(rows, predictions, RunRecord(full_precision="fp32")))
    found = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["vs full precision"] for row in found] == ["–", "−10.0 (p 0.002)"]
    assert [row["Base size"] for row in found] == ["4.00 KiB", "1.00 KiB"]
    assert [row["Train step"] for row in found] == ["12.0 ms", "6.00 ms"]


def test_one_base_has_no_columns_of_bases(write: Write) -> None:
    header, *_ = read_markdown(write())
    assert not {"Base", "vs full precision", "Base size", "Train step"} & set(header)


def test_a_quantised_row_has_the_ceiling_in_full_precision() -> None:
    run = RunRecord(roles={"ceiling": "full"}, full_precision="fp32")
    rows = [done("full", 80), done("a", 70, base="int8"), done("full", 79, base="bf16")]
    predictions = {(r.method, r.base, 0): right(round(100 * (r.score or 0))) for r in rows}
    found = {(s.method, s.base): s.vs_ceiling for s in summarise(rows, predictions, run)}
    assert found["full", "fp32"] is None
    int8 = found["a", "int8"]
    assert int8 is not None and int8.points == pytest.approx(-10)
    assert found["full", "bf16"] is None


def test_a_role_on_another_base_is_no_role() -> None:
    rows = [done("low", 60), done("a", 70, base="int8")]
    predictions = {("low", "fp32", 0): right(60), ("a", "int8", 0): right(70)}
    assert summarise(rows, predictions, RUN)[1].vs_floor is None


def test_a_failed_row_says_why(write: Write) -> None:
    folder = write()
    failed = read_markdown(folder)[-1]
    assert failed[1] == r"failed: no luck \| &lt;b>at&lt;/b> all"
    assert set(failed[2:]) == {"–"}


def test_a_failure_without_a_reason_says_so() -> None:
    assert (
        summarise([broken("a", None)], {}, RunRecord())[0].failure
        == "failed: no reason was recorded"
    )


def test_html_table_is_a_table_with_its_text_escaped(write: Write) -> None:
    text = (write() / "table.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert tuple(page.rows[0]) == TITLES
    assert page.rows[-1][1] == "failed: no luck | <b>at</b> all"
    assert "<b>" not in text


def test_latex_has_one_line_for_each_row(write: Write) -> None:
    text = (write() / "table.tex").read_text(encoding="utf-8")
    body = text.split("\\midrule\n")[1].split("\\bottomrule")[0]
    lines = body.strip().splitlines()
    assert len(lines) == len(ROWS)
    assert all(line.endswith(r"\\") for line in lines)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(TITLES) - 1}


def test_latex_escapes_what_latex_reads(write: Write) -> None:
    text = (write() / "table.tex").read_text(encoding="utf-8")
    assert r"other\_one" in text
    assert "small{[}rank=8{]}" in text
    assert r"1.23 M (5.43 \%)" in text
    assert r"0.65$\times$" in text
    assert text.count("{") == text.count("}")
    assert text.isascii()


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("50 % & a_b #1 $x$", r"50 \% \& a\_b \#1 \$x\$"),
        ("[a]{b}", r"{[}a{]}\{b\}"),
        ("a\\b~c^d", r"a\textbackslash{}b\textasciitilde{}c\textasciicircum{}d"),
        ("1.0 ± 0.2 – −3× <4>", r"1.0 $\pm$ 0.2 -- $-$3$\times$ $<$4$>$"),
    ],
)
def test_latex_escapes(text: str, escaped: str) -> None:
    assert tables._latex(text) == escaped


# ---------------------------------------------------------------------------------- human units


@pytest.mark.parametrize(
    ("words", "value", "text"),
    [
        (words.format_count, 0, "0"),
        (words.format_count, 999, "999"),
        (words.format_count, 999.7, "1.00 k"),
        (words.format_count, 12_345, "12.3 k"),
        (words.format_count, 999_950, "1.00 M"),
        (words.format_count, 1_234_567, "1.23 M"),
        (words.format_count, 134_515_008, "135 M"),
        (words.format_bytes, 912, "912 B"),
        (words.format_bytes, 1000, "0.977 KiB"),
        (words.format_bytes, 4_718_592, "4.50 MiB"),
        (words.format_duration, 0.42, "0.4 s"),
        (words.format_duration, 59.97, "1 m 00 s"),
        (words.format_duration, 80, "1 m 20 s"),
        (words.format_duration, 3599.7, "1 h 00 m"),
        (words.format_duration, 7500, "2 h 05 m"),
        (words.format_percent, 0.4321, "0.432 %"),
        (words.format_percent, 0.001234, "0.00123 %"),
        (words.format_percent, 100.0, "100 %"),
        (words.format_p_value, 0.0004, "< 0.001"),
        (words.format_p_value, 0.0234, "0.023"),
        (words.format_p_value, 0.5, "0.50"),
        (words.format_p_value, 1.0, "1.00"),
        (Unit.PERCENT.change, -0.04, "0.0"),
        (Unit.PERCENT.change, -2.0, "−2.0"),
    ],
)
def test_human_units(words: Callable[[float], str], value: float, text: str) -> None:
    assert words(value) == text


# ------------------------------------------------------------------------------------- the page


def test_the_page_is_well_formed_and_has_every_section(write: Write, drawn: None) -> None:
    page = Page((write() / "report.html").read_text(encoding="utf-8"))
    assert page.open == []
    ids = {value for tag, name, value in page.attributes if tag == "section" and name == "id"}
    always = {"table", "plots", "claims", "reading", "protocol", "failures", "cells", "provenance"}
    assert ids == always


def test_the_page_needs_nothing_from_anywhere(write: Write, drawn: None) -> None:
    text = (write() / "report.html").read_text(encoding="utf-8")
    assert "http" not in text
    page = Page(text)
    links = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith("#") for value in links)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_the_plot_stands_in_the_page(write: Write, drawn: None) -> None:
    text = (write() / "report.html").read_text(encoding="utf-8")
    figure = text.split("<figure")[1].split("</figure>")[0]
    assert figure.count("<svg") == 1
    assert "<metadata" not in figure


def test_no_two_elements_of_the_page_share_an_id(write: Write, drawn: None) -> None:
    page = Page((write() / "report.html").read_text(encoding="utf-8"))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = {value for _, name, value in page.attributes if name in ("href", "aria-labelledby")}
    assert {value.removeprefix("#") for value in used} <= set(ids)


def test_every_cost_has_a_picture_and_its_points_in_words(write: Write, drawn: None) -> None:
    text = (write() / "report.html").read_text(encoding="utf-8")
    section = text.split('<section id="plots">')[1].split("</section>")[0]
    assert section.count("<svg") == len(COSTS) == 4
    rows = Page(section).rows
    assert ["mixed", "79.0 [74.0, 83.0] %", "1 h 08 mown: 1 m 20 s, stage 1: 1 h 07 m", ""] in rows


def test_a_published_claim_has_this_runs_figures_beside_it(write: Write) -> None:
    text = (write() / "report.html").read_text(encoding="utf-8")
    claims = text.split('<article class="claim">')[1:]
    assert len(claims) == len(CLAIMS)
    inference, step, merged, *others = claims
    assert "arXiv:2010.11918" in inference
    assert "so in 2 of 2 rows" in inference and "small[rank=8]: 1.08×" in inference
    assert "high: " not in step
    assert "so in 1 of 1 row<" in merged
    assert all("Not in this run." in claim for claim in others)


SEARCH = Choice(
    lr=1e-2,
    trials=(
        Trial(lr=1e-4, score=0.6),
        Trial(lr=1e-3, score=None, reason="the loss is <NaN>"),
        Trial(lr=1e-2, score=0.7),
    ),
)
FOUND = {
    "moved": {"encoder.0": 0.1},
    "changes": {"encoder.0.block.out": 0.2},
    "attention": {"encoder.0.block.out": {"<imdb>": 0.25, "own": 0.75}},
    "by_members": {"1": 1.0, "2": 1.2},
}
INSIGHTS = CellExtras(
    searches={("mixed", "fp32", 0): SEARCH},
    found={("mixed", "fp32", 0): FOUND, ("small[rank=8]", "fp32", 0): {"moved": {"encoder.0": 1}}},
)


def test_a_search_is_shown_with_its_edge_and_what_failed(write: Write) -> None:
    text = (write(insights=INSIGHTS) / "report.html").read_text(encoding="utf-8")
    section = text.split('<section id="rates">')[1].split("</section>")[0]
    assert section.count("<svg") == section.count('class="chosen"') == 1
    assert section.count('class="tried"') == section.count('class="failed"') == 1
    assert "The highest rate that was tried" in section
    assert '<p class="warning">0.001: failed, the loss is &lt;NaN&gt;</p>' in section
    assert "1 of 5 cells failed, 1 of 3 trials failed." in text


def test_what_happens_inside_is_shown_layer_by_layer(write: Write) -> None:
    text = (write(insights=INSIGHTS) / "report.html").read_text(encoding="utf-8")
    page = Page(text.split('<section id="inside">')[1].split("</section>")[0])
    assert page.open == []
    assert page.rows == [
        ["Layer", "0"],
        ["small[rank=8]", "100 %"],  # in the order of the table
        ["mixed", "10.0 %"],
        ["Layer", "0"],
        ["mixed · block.out", "20.0 %"],
        ["Layer", "0"],
        ["mixed · block.out · <imdb>", "0.25"],
        ["mixed · block.out · own", "0.75"],
    ]
    assert "mixed: 1.20× with 2 members" in text


def test_without_a_search_or_a_look_inside_their_sections_are_left_out(write: Write) -> None:
    text = (write() / "report.html").read_text(encoding="utf-8")
    assert "#rates" not in text and "#inside" not in text
    assert "1 of 5 cells failed." in text


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (ROWS, ("One seed", "100 test examples", "No learning rate", "1 of 5 cells failed")),
        ((done("a", 60), done("a", 61, seed=1)), ("2 seeds", "No learning rate")),
        ((done("a", 60, trials=3, lr_edge="high"),), ("a: the best rate is at an edge",)),
    ],
)
def test_the_page_says_what_the_run_cannot(write: Write, rows: Any, said: tuple[str, ...]) -> None:
    text = (write(rows, {}) / "report.html").read_text(encoding="utf-8")
    limits = text.split("What this run cannot say")[1].split("</ul>")[0]
    assert [word for word in said if word not in limits] == []
    assert ("No learning rate" in limits) == ("No learning rate" in said)


def test_the_page_is_small(write: Write, drawn: None) -> None:
    rows = [done(f"method {n}", 60 + n, base=base) for n in range(8) for base in ("fp32", "int8")]
    text = (write(rows, {}) / "report.html").read_text(encoding="utf-8")
    assert len(text.encode()) < 1_000_000


def test_the_page_shows_rows_failures_notes_protocol_and_provenance(write: Write) -> None:
    text = " ".join(Page((write() / "report.html").read_text(encoding="utf-8")).texts)
    words = " ".join(text.split())
    for expected in (
        "reviews · tiny",
        "small[rank=8]",
        "other_one · fp32 · seed 0",
        "no luck | <b>at</b> all",
        "The test split was carved from train.",
        "methods",
        "2.13",
        "2025-01-31T12:00:00+00:00",
    ):
        assert expected in words


def test_a_failed_row_on_one_of_several_bases_says_on_which(write: Write) -> None:
    rows = [done("a", 60), broken("a", base="int8")]
    text = (write(rows, {}) / "report.html").read_text(encoding="utf-8")
    assert "on int8, failed: out of memory" in text


def test_fields_are_sorted_by_number_and_what_is_absent_by_nothing(write: Write) -> None:
    text = (write() / "report.html").read_text(encoding="utf-8")
    assert '<td data-sort="1234567.0">1.23 M</td>' in text
    assert "<td>–</td>" in text


@pytest.mark.parametrize("where", ["task", "method", "reason", "run"])
def test_whatever_people_name_is_escaped(write: Write, drawn: None, where: str) -> None:
    evil = '<script>alert("1")</script>$\\frac{'
    task = evil if where == "task" else "reviews"
    rows = [
        done(evil if where == "method" else "a", 60, task=task),
        done("b", 61, task=task, deployed_params=0),
        broken("c", evil if where == "reason" else "bad luck", task=task),
    ]
    settings = PlanRecord(settings={evil: [evil]})
    run = replace(RUN, plan=settings, notes=(evil,)) if where == "run" else RUN
    folder = write(rows, {}, run)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert text.count("<script") == 1
    assert "<script>alert" not in "".join(
        (folder / name).read_text(encoding="utf-8")
        for name in ("report.html", "table.html", "table.md", "pareto.svg")
    )
    ElementTree.parse(folder / "pareto.svg")


# ------------------------------------------------------------------------------------- the plot


POINTS = (
    Point(label="low", base="fp32", cost=0, score=60.0, low=55.0, high=65.0),
    Point(label="unknown", base="fp32", cost=None, score=50.0),
    Point(label="worse", base="fp32", cost=9e4, score=59.0),
    Point(label="small", base="fp32", cost=1e5, score=78.0, low=76.0, high=80.0),
    Point(label="same", base="fp32", cost=1e5, score=77.0),
    Point(label="waste", base="fp32", cost=1e6, score=78.0),
    Point(label="high", base="fp32", cost=2e7, score=80.0),
)


def test_the_front_has_what_no_other_row_beats() -> None:
    assert [point.label for point in pareto_front(POINTS)] == ["low", "small", "high"]


def test_the_front_does_not_depend_on_the_order() -> None:
    assert pareto_front(POINTS[::-1]) == pareto_front(POINTS)


def test_the_same_points_give_the_same_bytes() -> None:
    first, second = (pareto_plot(POINTS, title="t", metric=ACCURACY) for _ in range(2))
    assert first == second
    assert first.png.startswith(b"\x89PNG")
    assert b"Software" not in first.png
    assert "<dc:date>" not in first.svg


def test_the_picture_does_not_depend_on_settings_and_leaves_them() -> None:
    import matplotlib

    expected = pareto_plot(POINTS, title="t", metric=ACCURACY)
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red"}):
        assert pareto_plot(POINTS, title="t", metric=ACCURACY) == expected
        assert matplotlib.rcParams["font.size"] == 20


def test_png_is_900_by_600() -> None:
    png = pareto_plot(POINTS, title="t", metric=ACCURACY).png
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (900, 600)


@pytest.mark.parametrize("points", [(), POINTS[:1], POINTS[:2], POINTS[3:4]])
def test_few_points_make_a_picture_too(points: tuple[Point, ...]) -> None:
    svg = pareto_plot(points, title="t", metric=ACCURACY).svg
    assert ElementTree.fromstring(svg).tag.endswith("svg")


def labels_of(points: tuple[Point, ...], monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The boxes of the labels in the finished picture."""
    from deltakit.compare.report import pareto as plots

    boxes: list[Any] = []
    place = plots.place

    def watched(figure: Any, axes: Any, labels: Any, lengths: Any) -> None:
        place(figure, axes, labels, lengths)
        boxes.extend(label.get_window_extent() for label in labels)

    monkeypatch.setattr(plots, "place", watched)
    pareto_plot(points, title="t", metric=ACCURACY)
    return boxes


def test_labels_of_points_that_lie_together_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    points = tuple(
        Point(label=f"method {n}", base="fp32", cost=1e5 * (1 + n / 50), score=78 + n / 20)
        for n in range(6)
    )
    boxes = labels_of((*POINTS[:1], *points, POINTS[-1]), monkeypatch)
    assert len(boxes) == 8
    for number, box in enumerate(boxes):
        assert box.count_overlaps(boxes[:number]) == 0


def test_the_front_of_several_bases_is_made_of_their_true_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deltakit.compare.report import pareto as plots

    seen: list[Any] = []
    stairs = plots._stairs
    watched = lambda axes, front: seen.append(front) or stairs(axes, front)  # noqa: E731
    monkeypatch.setattr(plots, "_stairs", watched)
    points = [
        Point(label="a", base=base, cost=1e5, score=score)
        for base, score in (("fp32", 70.0), ("int8", 71.0))
    ]
    pareto_plot(points, title="t", metric=ACCURACY)
    # Bases are drawn a little apart: that must not make the worse one the cheaper one.
    assert [point.base for point in seen[0]] == ["int8"]


# --------------------------------------------------------------------------------- the terminal


def test_the_terminal_table_fits_100_columns(write: Write) -> None:
    text = plain_text(terminal_table(ROWS, PREDICTIONS, RUN), width=100)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    for expected in ("small[rank", "78.0 [73.0, 82.0]", "< 0.001", "1.23 M", "5.43", "4.50 MiB"):
        assert expected in text
    assert "+ 1 h 07 m" in text


def test_the_terminal_table_says_why_rows_failed() -> None:
    text = plain_text(terminal_table(ROWS, PREDICTIONS, RUN))
    assert "other_one (fp32) failed: no luck | <b>at</b> all" in text


def test_one_reason_of_several_seeds_is_said_once() -> None:
    rows = [done("a", 60), *(broken("b", seed=seed) for seed in range(3))]
    assert plain_text(terminal_table(rows, {}, RUN)).count("out of memory") == 1


def test_the_terminal_table_names_bases_where_there_are_several() -> None:
    rows = [done("a", 60), done("a", 61, base="int8")]
    assert "Base" in plain_text(terminal_table(rows, {}, RUN))
    assert "Base" not in plain_text(terminal_table(rows[:1], {}, RUN))
