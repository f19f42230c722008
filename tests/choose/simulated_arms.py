"""Arms whose predictions come from a curve, for tests of the bracket."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deltakit.choose.decide.arms import ArmFacts, Memory, Reading, Rung
from deltakit.choose.decide.finals_size import Costs
from deltakit.choose.decide.ladder import plan_ladder
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import METRICS

ACCURACY = METRICS.get("accuracy")

COSTS = Costs(validation_rows=400, test_rows=400)


@dataclass(frozen=True)
class Truth:
    """An arm's curve: accuracy at the end, steps at chance, then steps until half is learnt."""

    final: float
    half: float = 5.0
    start: int = 0


class SimulatedArm:
    """An arm whose predictions come from a curve. Its time is that of its facts, times `slow`."""

    def __init__(self, facts: ArmFacts, truth: Truth, *, slow: float = 1.0, seed: int = 0) -> None:
        self.facts, self.truth, self.slow, self.seed = facts, truth, slow, seed
        self.steps = 0
        self.calls = 0

    def advance(self, rung: Rung) -> Reading:
        self.calls += 1
        steps = max(0, rung.steps - self.truth.start)
        accuracy = 0.5 + (self.truth.final - 0.5) * steps / (steps + self.truth.half)
        seconds = self.slow * self.facts.seconds(rung.steps - self.steps, rung.rows)
        self.steps = rung.steps
        made = simulated_predictions(accuracy, rung.rows, f"{self.facts.name}-{self.seed}")
        return Reading(steps=rung.steps, seconds=seconds, predictions=made)


def simulated_predictions(accuracy: float, rows: int, name: str, split: int = 0) -> Predictions:
    """Right answers at a rate; some examples are hard for all."""
    shared = np.random.default_rng(split).normal(size=rows)
    own = np.random.default_rng([split, *name.encode()]).normal(size=rows)
    threshold = np.sqrt(2) * _quantile(accuracy)
    right = (shared + own < threshold).astype(int)
    return Predictions(labels=(1,) * rows, predicted=tuple(right.tolist()))


def _quantile(share: float) -> float:
    from scipy.stats import norm

    return float(norm.ppf(share))


def field(
    families: Sequence[str] = ("lora", "adapter", "ia3", "prefix"),
    sizes: Sequence[int] = (1, 2),
    rates: Sequence[float] = (1e-4, 3e-4, 1e-3),
    *,
    step: float = 0.1,
) -> list[ArmFacts]:
    """Facts of families × sizes × rates; the first size and the middle rate are the usual ones."""
    return [
        ArmFacts(
            name=f"{family}{size}@{rate:g}",
            candidate=f"{family}{size}",
            family=family,
            lr=rate,
            cost=size * (1000 + 100 * at),
            step_seconds=step * (1 + 0.2 * at),
            row_seconds=step / 100,
            fixed_seconds=step,
            usual_size=size == sizes[0],
            usual_rate=rate == rates[len(rates) // 2],
        )
        for at, family in enumerate(families)
        for size in sizes
        for rate in rates
    ]


class Killed(RuntimeError):
    """The process was killed."""


class DyingJournal(Memory):
    """A journal whose process is killed before it stores reading number `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.left = at

    def keep(self, arm: str, rung: int, reading: Reading) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        super().keep(arm, rung, reading)


def drifting(slow: float, spread: float, seed: int) -> Iterator[float]:
    """Slowdowns of a busy machine."""
    generator = np.random.default_rng(seed)
    while True:
        yield slow * float(np.exp(generator.normal(0, spread)))


def arms_of(facts, seed=0, slow=None):
    """Rates away from the usual one learn less; larger sizes a little more."""
    slow = slow or drifting(1.0, 0.0, 0)
    return [
        SimulatedArm(
            each,
            Truth(
                final=0.8
                + 0.02 * (not each.usual_size)
                - 0.1 * (not each.usual_rate)
                - 0.02 * (seed + len(each.family)) % 5 * 0.01,
                half=20.0 if each.family == "prefix" else 4.0,
            ),
            slow=next(slow),
            seed=seed,
        )
        for each in facts
    ]


def ladder_for(seconds, facts=None, full_steps=100):
    return plan_ladder(facts or field(), seconds=seconds, full_steps=full_steps, costs=COSTS)


def majority(rows: int) -> Predictions:
    return simulated_predictions(0.5, rows, "majority")


def starters(truths):
    """One arm of each family, at its own curve."""
    facts = field(tuple(truths), sizes=(1,), rates=(1e-3,))
    return facts, [SimulatedArm(each, truths[each.family]) for each in facts]


LATE = {
    "ia3": Truth(final=0.66, half=4.0),
    "lora": Truth(final=0.85, half=10.0, start=18),
    "adapter": Truth(final=0.84, half=10.0, start=20),
    "prefix": Truth(final=0.84, half=10.0, start=40),
    "stuck": Truth(final=0.5),
}

"""A quick arm that is not good, three that start late, and one that never starts."""


def late_field(start: int = 30):
    """Arms of which none has learnt anything after `start` steps."""
    facts = field(("lora", "adapter", "ia3"))
    truths = {arm.name: Truth(final=0.85, half=8.0, start=start) for arm in facts}
    return facts, [SimulatedArm(each, truths[each.name]) for each in facts]
