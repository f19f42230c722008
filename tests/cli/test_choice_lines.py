"""The lines of a running choice."""

from io import StringIO

from rich.console import Console

from deltakit.choose.decide.arms import ArmFacts, Rung
from deltakit.choose.decide.halving import Fate, Verdict
from deltakit.choose.decide.watch import RungResult
from deltakit.cli.choice_lines import ChoiceLines
from deltakit.compare.stats.metrics import METRICS

ACCURACY = METRICS.get("accuracy")
RUNG = Rung(number=1, steps=24, rows=300)


def facts(name: str) -> ArmFacts:
    return ArmFacts(name=name, candidate=name, family=name, lr=1e-3, cost=1.0, step_seconds=0.1)


def printed(result: RungResult, others: int = 0) -> list[str]:
    console = Console(file=StringIO(), width=100)
    lines = ChoiceLines(console)
    lines.rung_begins(RUNG, [facts(each.arm) for each in result.verdicts])
    if others:
        lines.others_begin(RUNG, [facts(f"other {at}") for at in range(others)])
    lines.rung_ends(result, ACCURACY)
    return console.file.getvalue().splitlines()


def test_a_rung_that_is_too_short_says_that_the_next_is_longer() -> None:
    verdicts = tuple(
        Verdict(arm=name, fate=Fate.KEPT, score=0.7, behind=0.0, at_chance=name == "lora")
        for name in ("head", "lora")
    )
    result = RungResult(rung=RUNG, verdicts=verdicts, correlation=None, seconds=1.0, too_short=True)
    assert printed(result) == [
        "rung 1: 2 arms to 24 steps, scored on 300 validation examples",
        "  too short: most methods have not begun to learn, so the next rung is longer",
        "  goes on: head, 70.0 %",
        "  goes on: lora, 70.0 %",
        "  no better than a constant guess yet, so not judged: lora",
    ]


def test_the_arms_that_begin_after_the_first_of_each_method_are_counted() -> None:
    verdicts = (
        Verdict(arm="lora", fate=Fate.KEPT, score=0.7, behind=0.0),
        Verdict(arm="ia3", fate=Fate.BEATEN, score=0.5, behind=20.0, detectable=6.0),
        Verdict(arm="bitfit", fate=Fate.NO_BUDGET),
    )
    result = RungResult(rung=RUNG, verdicts=verdicts, correlation=0.6, seconds=1.0)
    assert printed(result, others=1) == [
        "rung 1: 3 arms to 24 steps, scored on 300 validation examples",
        "  to 24 steps too: 1 other arm",
        "  goes on: lora, 70.0 %",
        "  out: ia3, 20.0 behind the best, where 6.0 can be told",
        "  stopped for lack of time, not worse: 1 arm",
        "  rank correlation with the rung before: 0.60 (1: same order)",
    ]
