"""No test passes or fails by a clock: a busy machine may take its time."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

CLOCKS = {
    "the time it took": r"time\.(?:time|monotonic|perf_counter|process_time)(?:_ns)?\(\)",
    "a limit in seconds": r"\btimeout=\d|\.(?:join|wait|acquire)\(\s*(?:timeout=)?[\d.]+\s*\)",
    "a limit for an example": r"\bdeadline=(?!None)",
    "sleep": r"\bsleep\([1-9]|\bsleep\(0\.[1-9]",
}
"""Polls are not among them: a short sleep in a loop that waits for a state, however long."""


@pytest.mark.parametrize("clock", CLOCKS)
def test_no_test_reads_a_clock(clock: str) -> None:
    found = [
        f"{path.relative_to(TESTS)}:{number}: {line.strip()}"
        for path in sorted(TESTS.rglob("*.py"))
        if path != Path(__file__)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(CLOCKS[clock], line) and "slow" not in path.parts
    ]
    assert found == []
