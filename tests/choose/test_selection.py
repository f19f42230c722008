"""The selection: a finalist that breaks a constraint as measured is not chosen."""

from types import SimpleNamespace
from typing import Any

from deltakit.choose.constraints import Facts, constraints_of
from deltakit.choose.finals import Trained
from deltakit.choose.selection import best_seed, broken_constraints, chosen
from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.stats.metrics import METRICS

LORA, IA3 = ("lora", "fp32"), ("ia3", "fp32")
FACTS = Facts(trained_params=10, deployed_params=10, base_params=1000, disk_bytes=40, latency=1.0)


def cell(method: str, latency: float) -> CellResult:
    return CellResult(
        method=method, base="fp32", task="t", seed=0, status="done", latency_vs_base_b1=latency
    )  # fmt: skip


def predicted(right: int) -> Predictions:
    return Predictions(labels=(1,) * 100, predicted=(1,) * right + (0,) * (100 - right))


def prepared(**limits: object) -> Any:
    return SimpleNamespace(
        facts={"lora on fp32": FACTS, "ia3 on fp32": FACTS},
        field=SimpleNamespace(floor_facts=FACTS),
        request=SimpleNamespace(constraints=constraints_of(limits), margin=0.5),
        metric=METRICS.get("accuracy"),
    )


def test_constraints_are_checked_again_on_what_was_measured() -> None:
    made = {LORA: (predicted(90),), IA3: (predicted(60),)}
    trained = Trained(validation=made, rates={}, seconds=0.0, failed={})
    results: Any = SimpleNamespace(results=[cell("lora", 1.4), cell("ia3", 1.05)])
    asked = prepared(max_latency=1.1)
    broken = broken_constraints(asked, results, trained)
    assert broken == {LORA: ("has a latency of 1.40× the base's (--max-latency 1.1)",), IA3: ()}
    assert chosen(asked, trained, broken) == IA3, "the better one breaks it as measured"
    free = prepared()
    assert chosen(free, trained, broken_constraints(free, results, trained)) == LORA


def test_the_best_seed_is_that_of_the_best_validation_score() -> None:
    made = {20: predicted(50), 21: predicted(90), 22: predicted(90)}
    assert best_seed(made, METRICS.get("accuracy")) == 21
    values = {
        seed: Predictions(labels=(0.0, 1.0, 2.0), predicted=(0.0, 1.0, 2.0 + error))
        for seed, error in ((1, 0.5), (2, 0.1))
    }
    assert best_seed(values, METRICS.get("mse")) == 2, "a lower error is better"
