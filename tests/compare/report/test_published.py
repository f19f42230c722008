"""Published claims beside a run's figures: found by what rows measure, not by what they are."""

from typing import Any

import pytest

from deltakit.compare.records.result import CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.published import CLAIMS, ClaimInput, Figure
from deltakit.compare.report.summary import summarise

INFERENCE, STEP, MERGED, DROPPED, MEMBERS = CLAIMS


def evidence(*cells: CellResult, found: Any = None) -> ClaimInput:
    rows = summarise(cells, {}, RunRecord())
    names = {(row.method, row.base): row.method for row in rows}
    run = RunRecord(roles={"floor": "low", "ceiling": "high"})
    return ClaimInput(summaries=rows, found=found or {}, names=names, run=run)


def row(method: str, **changes: Any) -> CellResult:
    fields = {"deployed_params": 9, "score": 0.5, **changes}
    return CellResult(method=method, base="fp32", task="t", seed=0, **fields)


def test_every_claim_has_a_figure_and_a_source() -> None:
    for claim in CLAIMS:
        assert claim.text.endswith(".") and claim.caveat.startswith("This run: ")
        assert claim.published
        for each in claim.published:
            assert any(char.isdigit() for char in each.source)


@pytest.mark.parametrize("claim", CLAIMS)
def test_without_rows_there_are_no_figures(claim: Any) -> None:
    assert claim.figures(evidence()) == ()
    failed = CellResult(method="a", base="fp32", task="t", seed=0, status="failed")
    assert claim.figures(evidence(failed)) == ()


@pytest.mark.parametrize(
    ("claim", "column", "value", "agrees"),
    [
        (INFERENCE, "latency_vs_base_b1", 1.08, True),
        (INFERENCE, "latency_vs_base_b1", 0.97, False),
        (STEP, "train_step_vs_full", 0.6, True),
        (STEP, "train_step_vs_full", 1.2, False),
        (MERGED, "merged_latency_vs_base_b1", 0.95, True),
        (MERGED, "merged_latency_vs_base_b1", 1.2, False),
    ],
)
def test_a_ratio_agrees_in_one_direction(
    claim: Any, column: str, value: float, agrees: bool
) -> None:
    (figure,) = claim.figures(evidence(row("a", **{column: value})))
    assert figure == Figure(row="a", words=f"{value:.2f}×", agrees=agrees)


def test_the_ceiling_and_what_deploys_nothing_are_no_deltas() -> None:
    cells = [
        row("low", latency_vs_base_b1=1.0, deployed_params=0),
        row("high", latency_vs_base_b1=1.0),
        row("a", latency_vs_base_b1=1.1),
    ]
    assert [figure.row for figure in INFERENCE.figures(evidence(*cells))] == ["a"]


@pytest.mark.parametrize(
    ("claim", "part", "steps", "words", "agrees"),
    [
        (
            DROPPED,
            "by_dropped",
            (1.0, 0.97, 0.9),
            "0.97× with 1, 0.90× with 2 layers dropped",
            True,
        ),
        (
            DROPPED,
            "by_dropped",
            (1.0, 0.9, 1.1),
            "0.90× with 1, 1.10× with 2 layers dropped",
            False,
        ),
        (MEMBERS, "by_members", (1.0, 1.1, 1.2), "1.10× with 1, 1.20× with 2 members", True),
        (MEMBERS, "by_members", (1.0, 1.1, 0.9), "1.10× with 1, 0.90× with 2 members", False),
    ],
)
def test_what_more_of_something_costs(
    claim: Any, part: str, steps: tuple[float, ...], words: str, agrees: bool
) -> None:
    found = {("a", "fp32"): {part: {str(n): step for n, step in enumerate(steps)}}}
    assert claim.figures(evidence(row("a"), found=found)) == (
        Figure(row="a", words=words, agrees=agrees),
    )
