"""Finalists: cells that failed when they were measured, and seeds that collapsed."""

from types import SimpleNamespace
from typing import Any

from deltakit.choose.arm_facts import FLOOR
from deltakit.choose.decide.halving import Fate, Verdict
from deltakit.choose.finals import Trained, with_results
from deltakit.choose.summing_up import _both, _tested, collapsed, learnt_rows
from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.stats.metrics import METRICS

LORA, IA3 = ("lora", "fp32"), ("ia3", "fp32")


def predicted(*values: int) -> Predictions:
    return Predictions(labels=(0,) * len(values), predicted=values)


def cell(method: str, seed: int, status: Any = "done") -> CellResult:
    reason = "out of memory" if status == "failed" else None
    return CellResult(
        method=method, base="fp32", task="t", seed=seed, status=status, reason=reason
    )  # fmt: skip


def trained(**validation: tuple[Predictions, ...]) -> Trained:
    keys = {(name, "fp32"): made for name, made in validation.items()}
    return Trained(validation=keys, rates={}, seconds=0.0, failed={})


def test_each_seed_has_its_own_validation_predictions_beside_those_of_test() -> None:
    plan: Any = SimpleNamespace(cells=[SimpleNamespace(seed=seed) for seed in (7, 8, 7, 8)])
    finals = trained(lora=(predicted(7, 7), predicted(8, 8)))
    made = {("lora", "fp32", 8): predicted(8)}
    results: Any = SimpleNamespace(predictions=made)
    tested = _tested(results, finals)[LORA]
    assert list(tested) == [8]
    (both,) = _both(plan, finals.validation[LORA], tested)
    assert both.predicted == (8, 8, 8), "those of another seed"


def test_a_finalist_that_was_never_measured_has_failed() -> None:
    finals = trained(lora=(predicted(0),), ia3=(predicted(0),))
    rows = [cell("lora", 0), cell("lora", 1, "failed"), cell("ia3", 0, "failed")]
    failures = [row for row in rows if row.status == "failed"]
    results: Any = SimpleNamespace(results=rows, failures=failures)
    left = with_results(finals, results)
    assert left.validation.keys() == {LORA} and left.failed == {IA3: "out of memory"}


LABELS = (0, 1) * 10
LEARNT, GUESSED = (
    Predictions(labels=LABELS, predicted=made) for made in (LABELS, (0,) * len(LABELS))
)


def test_a_row_that_had_learnt_and_guesses_now_has_collapsed() -> None:
    validation = {LORA: (LEARNT, GUESSED, GUESSED), IA3: (LEARNT,), ("head", "fp32"): (GUESSED,)}
    found = collapsed(
        validation, learnt={LORA, IA3}, constant=GUESSED, metric=METRICS.get("accuracy")
    )
    assert dict(found) == {LORA: 2}


def test_what_was_better_than_a_guess_in_the_last_rung_had_learnt() -> None:
    def arm(name: str, family: str) -> Any:
        return SimpleNamespace(name=name, family=family)

    def candidate(label: str) -> Any:
        return SimpleNamespace(label=label, base=SimpleNamespace(name="fp32"))

    arms = [arm("lora", "lora"), arm("ia3", "ia3"), arm("head", FLOOR), arm("prefix", "prefix")]
    candidates = {each.name: candidate(each.name) for each in arms}
    facts = SimpleNamespace(facts=arms, candidates=candidates)
    last = SimpleNamespace(
        verdicts=(
            Verdict(arm="lora", fate=Fate.KEPT, score=0.8),
            Verdict(arm="head", fate=Fate.KEPT, score=0.7),
            Verdict(arm="ia3", fate=Fate.AT_CHANCE, score=0.5, at_chance=True),
            Verdict(arm="prefix", fate=Fate.FAILED, reason="it is so"),
        )
    )
    early = SimpleNamespace(verdicts=(Verdict(arm="ia3", fate=Fate.KEPT, score=0.8),))
    prepared: Any = SimpleNamespace(field=facts)
    bracket: Any = SimpleNamespace(rungs=(early, last))
    assert learnt_rows(prepared, bracket) == {LORA}
