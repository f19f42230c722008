"""Verdicts of other libraries in the table: means over seeds."""

import pytest

from deltakit.compare.records.result import CellResult
from deltakit.compare.records.run import RunRecord
from deltakit.compare.records.verdict import Verdict
from deltakit.compare.report.columns import verdict_columns
from deltakit.compare.report.summary import summarise
from deltakit.compare.report.verdicts import mean_verdict


def verdict(value: float, stderr: float | None = 0.1) -> Verdict:
    return Verdict(judge="j", version="1", task="t", metric="m", value=value, stderr=stderr)


@pytest.mark.parametrize(
    ("second", "words"), [(0.3, "0.3000 ± 0.2000 (2 seeds)"), (None, "0.3000 (2 seeds)")]
)
def test_the_mean_over_seeds(second: float | None, words: str) -> None:
    rows = [CellResult(method="lora", base="fp32", task="t", seed=seed) for seed in (0, 1, 2)]
    found = {
        ("lora", "fp32", 0): (verdict(0.2),),
        ("lora", "fp32", 1): (verdict(0.4, second),),
        ("other", "fp32", 0): (verdict(0.9),),
    }
    (row,) = summarise(rows, {}, RunRecord(), found)
    (column,) = verdict_columns([row])
    assert (column.title, str(column.cell(row))) == ("j: t m", words)
    assert mean_verdict(row, "j: t other") is None
