"""The cost of a choice, over that of the grid."""

from types import SimpleNamespace
from typing import Any

import pytest

from deltakit.choose.arm_facts import FLOOR
from deltakit.choose.cost import cost_share
from deltakit.choose.decide.arms import ArmFacts, Rung
from deltakit.choose.decide.finals_size import DEPTHS
from deltakit.choose.decide.halving import Fate, Verdict
from deltakit.choose.decide.watch import RungResult


def facts(name: str, family: str, seconds: float) -> ArmFacts:
    return ArmFacts(
        name=name, candidate=family, family=family, lr=1e-3, cost=1.0, step_seconds=seconds
    )


def rung(number: int, steps: int, *arms: str) -> RungResult:
    verdicts = tuple(Verdict(arm=name, fate=Fate.KEPT, score=0.5) for name in arms)
    lost = Verdict(arm="lost", fate=Fate.NO_BUDGET)
    return RungResult(
        rung=Rung(number=number, steps=steps, rows=9),
        verdicts=(*verdicts, lost),
        correlation=None,
        seconds=1.0,
    )


def test_an_arm_that_joins_late_costs_all_of_its_steps() -> None:
    """`a` takes 24 steps, then 48; `b` joins at 48; `c` goes on to 100; `lost` is not trained."""
    arms = [facts(name, name, at + 1.0) for at, name in enumerate("abc")]
    floor = facts("floor", FLOOR, 0.5)
    field = SimpleNamespace(facts=[*arms, facts("lost", "lost", 9.0), floor], floor=floor)
    bracket: Any = SimpleNamespace(rungs=(rung(1, 24, "a"), rung(2, 48, *"abc"), rung(3, 100, "c")))
    budget = SimpleNamespace(epochs=2.0, batch_size=4)
    cells = [SimpleNamespace(label="x", base="fp32", training=None)]
    plan: Any = SimpleNamespace(
        request=SimpleNamespace(budget=budget), task=SimpleNamespace(train=range(200)), cells=cells
    )
    prepared: Any = SimpleNamespace(field=field)
    spent = 48 * 1.0 + 48 * 2.0 + 100 * 3.0
    grid = 100 * (1 + DEPTHS[0].seeds) * (1.0 + 2.0 + 3.0 + 9.0)
    assert cost_share(prepared, bracket, plan) == pytest.approx(spent / grid)
