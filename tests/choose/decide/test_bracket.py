"""The bracket: its budget, its families, and that a killed run decides as an undisturbed one."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from deltakit.choose.decide.arms import ArmFacts, Memory, Reading, Rung
from deltakit.choose.decide.bracket import run_bracket
from deltakit.choose.decide.halving import Fate, finalists
from deltakit.choose.decide.ladder import (
    DEPTHS,
    FEWEST_STEPS,
    Costs,
    TooSmall,
    by_worth,
    finals_seconds,
    finals_that_fit,
    one_each,
    plan_ladder,
    rungs_of,
    untried,
)
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


@pytest.mark.parametrize("seconds", [150, 200, 400, 5000])
def test_a_ladder_is_planned_within_the_budget(seconds):
    facts = field()
    ladder = ladder_for(seconds)
    planned = ladder.bracket_seconds + ladder.finals_seconds
    assert planned == pytest.approx(0.9 * seconds)
    assert ladder.rungs[-1].steps >= FEWEST_STEPS
    families = {arm.family for arm in facts if arm.name in ladder.arms}
    assert families == {arm.family for arm in facts}
    assert set(ladder.arms) | set(ladder.left_out) == {arm.name for arm in facts}


def test_more_time_means_more_arms_then_longer_trainings_then_deeper_finals():
    small, large = ladder_for(150), ladder_for(5000, full_steps=200)
    assert len(small.arms) < len(large.arms) == len(field())
    assert small.rungs[-1].steps < large.rungs[-1].steps == 200
    assert large.depth == DEPTHS[0]


def test_too_small_a_budget_says_what_would_do():
    with pytest.raises(TooSmall) as caught:
        ladder_for(5)
    enough = ladder_for(caught.value.seconds * 1.001)
    assert set(enough.arms) == {arm.name for arm in one_each(field()[:12])}  # two families
    assert untried(field(), enough) == ("ia3", "prefix")
    with pytest.raises(TooSmall):
        ladder_for(caught.value.seconds * 0.98)


@pytest.mark.parametrize(("slow", "spread"), [(1.0, 0.0), (0.7, 0.2), (1.3, 0.2), (1.8, 0.3)])
@pytest.mark.parametrize("seconds", [90, 150, 400])
def test_the_budget_is_kept_on_a_machine_that_is_slower_than_measured(slow, spread, seconds):
    for seed in range(2):
        facts = field()
        ladder = ladder_for(seconds)
        arms = arms_of(facts, seed, drifting(slow, spread, seed))
        result = run_bracket(arms, ladder, ACCURACY, Memory())
        chosen = finalists(facts, result.rungs[-1].verdicts, 3)
        fitting = finals_that_fit(
            chosen,
            seconds=seconds - result.seconds,
            steps=result.rungs[-1].rung.steps,
            most_steps=100,
            costs=COSTS,
            slowdown=result.slowdown,
        )
        finals = slow * finals_seconds(fitting.arms, fitting.steps, fitting.depth, COSTS)
        assert result.seconds + finals <= 1.1 * seconds, (seed, result.seconds, finals)


@pytest.mark.parametrize("slow", [3.0, 6.0])
def test_a_much_slower_machine_trains_two_families_and_keeps_the_time_of_the_rungs(slow):
    facts = field()
    ladder = ladder_for(150)
    result = run_bracket(arms_of(facts, slow=drifting(slow, 0.0, 0)), ladder, ACCURACY, Memory())
    last = result.rungs[-1]
    begun = {v.arm.partition("@")[0][:-1] for v in last.verdicts if v.score is not None}
    assert len(begun) >= 2
    longest = slow * max(each.seconds(last.rung.steps, last.rung.rows) for each in facts)
    assert result.seconds <= ladder.bracket_seconds + 2 * longest
    left = [v for v in last.verdicts if v.score is None]
    assert all(v.fate is Fate.NO_BUDGET for v in left)


@pytest.mark.parametrize(("seconds", "slow"), [(250, 1.0), (250, 1.5), (400, 1.5), (400, 2.0)])
def test_the_finals_give_up_their_depth_before_the_last_rung_is_left_out(seconds, slow):
    ladder = ladder_for(seconds)
    assert ladder.depth.finalists > 1 and ladder.least_finals_seconds < ladder.finals_seconds
    arms = arms_of(field(), slow=drifting(slow, 0.0, 0))
    result = run_bracket(arms, ladder, ACCURACY, Memory())
    assert [each.rung for each in result.rungs] == list(ladder.rungs)
    assert sum(v.score is not None for v in result.rungs[-1].verdicts) >= 2
    least = slow * ladder.least_finals_seconds
    assert result.seconds + least <= 1.02 * seconds


def test_what_an_arm_has_gained_over_the_majority_is_counted_at_the_first_rung():
    facts = field(("lora", "ia3"), sizes=(1,))
    ladder = ladder_for(5000, facts)
    majority = simulated_predictions(0.5, 400, "majority")

    def fate(chance):
        arms = arms_of(facts)
        for arm in arms:
            arm.truth = Truth(final=0.95, half=1.0)
        arms[0].truth = Truth(final=0.95, half=25.0)  # 72 % after 24 steps
        result = run_bracket(arms, ladder, ACCURACY, Memory(), chance=chance)
        name = arms[0].facts.name
        return {verdict.arm: verdict.fate for verdict in result.rungs[0].verdicts}[name]

    assert fate(None) is Fate.BEATEN
    assert fate(lambda rows: majority) in (Fate.KEPT, Fate.NO_BUDGET)


def test_every_family_is_in_the_second_rung():
    facts = field()
    arms = arms_of(facts)
    for arm in arms:
        if arm.facts.family == "prefix":  # learns late
            arm.truth = Truth(final=0.9, half=60.0)
    result = run_bracket(arms, ladder_for(150), ACCURACY, Memory())
    second = {verdict.arm for verdict in result.rungs[1].verdicts if verdict.score is not None}
    assert {each.family for each in facts if each.name in second} == {a.family for a in facts}


def test_an_arm_goes_on_from_where_it_stopped():
    arms = arms_of(field())
    result = run_bracket(arms, ladder_for(400), ACCURACY, Memory())
    for arm in arms:
        seen = sum(
            v.score is not None
            for rung in result.rungs
            for v in rung.verdicts
            if v.arm == arm.facts.name
        )
        assert arm.calls == seen


def test_killed_at_five_moments_it_decides_as_undisturbed():
    facts = field()
    ladder = ladder_for(150)

    def slow():
        return drifting(1.2, 0.3, 7)

    whole = Memory()
    undisturbed = run_bracket(arms_of(facts, slow=slow()), ladder, ACCURACY, whole)
    for at in (0, 1, len(whole.kept) // 2, len(whole.kept) - 4, len(whole.kept) - 1):
        journal = DyingJournal(at)
        with pytest.raises(Killed):
            run_bracket(arms_of(facts, slow=slow()), ladder, ACCURACY, journal)
        journal.left = 10_000
        # The arms of a new process: each takes up its stored state.
        arms = arms_of(facts, slow=slow())
        for arm in arms:
            done = [r.steps for (name, _), r in journal.kept.items() if name == arm.facts.name]
            arm.steps = max(done, default=0)
        again = run_bracket(arms, ladder, ACCURACY, journal)
        assert [r.verdicts for r in again.rungs] == [r.verdicts for r in undisturbed.rungs], at
        assert again.seconds == pytest.approx(undisturbed.seconds)


def test_a_low_rank_correlation_makes_the_next_cut_more_cautious():
    class Turned(SimulatedArm):
        """An arm that is as good at the first rung as it is bad at the second."""

        def advance(self, rung: Rung) -> Reading:
            if rung.number > 1:
                self.truth = Truth(final=1.55 - self.truth.final)
            return super().advance(rung)

    facts = field(sizes=(1,), rates=(1e-4, 3e-4))
    arms = [Turned(each, Truth(final=0.72 + 0.015 * at)) for at, each in enumerate(facts)]
    result = run_bracket(arms, ladder_for(400, facts), ACCURACY, Memory())
    first, second = result.rungs[:2]
    assert first.correlation is None
    assert second.correlation is not None and second.correlation < 0.5
    behind = [v for v in second.verdicts if v.behind and v.detectable]
    # More than what can be detected, and not out for it.
    assert any(v.behind > v.detectable and v.fate is not Fate.BEATEN for v in behind)


def test_the_best_arm_is_found():
    """Over many seeds, the choice is seldom far from the best."""
    regrets = []
    for seed in range(6):
        facts = field()
        arms = arms_of(facts, seed)
        result = run_bracket(arms, ladder_for(200), ACCURACY, Memory())
        chosen = {each.name for each in finalists(facts, result.rungs[-1].verdicts, 3)}
        best = max(arm.truth.final for arm in arms)
        regrets.append(best - max(a.truth.final for a in arms if a.facts.name in chosen))
    print("mean regret of the best finalist", sum(regrets) / len(regrets))
    assert sum(regrets) / len(regrets) <= 0.011


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


@pytest.mark.parametrize("seconds", [150, 250, 400])
def test_late_starters_are_not_called_worse_before_they_start(seconds):
    facts, arms = starters(LATE)
    ladder = ladder_for(seconds, facts)
    result = run_bracket(arms, ladder, ACCURACY, Memory(), chance=majority)
    for rung in result.rungs:
        for verdict in rung.verdicts:
            assert verdict.fate is not Fate.BEATEN or rung.rung.steps > LATE[verdict.arm[:-7]].start
    chosen = [each.family for each in finalists(facts, result.rungs[-1].verdicts, 3)]
    assert chosen[0] in ("lora", "adapter", "prefix"), chosen
    last = {verdict.arm: verdict.fate for verdict in result.rungs[-1].verdicts}
    assert last.get("stuck1@0.001", Fate.AT_CHANCE) is Fate.AT_CHANCE


def test_without_the_majority_the_late_ones_are_called_worse():
    """The rule of chance is what spares them: rungs of 5, 14 and 40 steps, as they once were."""
    facts, arms = starters(LATE)
    ladder = ladder_for(400, facts)
    early = tuple(Rung(number=at + 1, steps=n, rows=400) for at, n in enumerate((5, 14, 40)))
    found = {}
    for chance in (None, majority):
        result = run_bracket(
            starters(LATE)[1], replace(ladder, rungs=early), ACCURACY, Memory(), chance=chance
        )
        second = result.rungs[1].verdicts
        found[chance] = {v.arm.partition("1@")[0] for v in second if v.fate is Fate.BEATEN}
    assert "lora" in found[None] and found[majority] == set()


def test_a_field_at_chance_goes_on_whole_and_no_arm_is_worse():
    facts, arms = starters(dict.fromkeys(LATE, Truth(final=0.5)))
    result = run_bracket(arms, ladder_for(400, facts), ACCURACY, Memory(), chance=majority)
    verdicts = [v for rung in result.rungs for v in rung.verdicts]
    assert all(v.at_chance and v.fate is not Fate.BEATEN for v in verdicts)
    assert len(finalists(facts, result.rungs[-1].verdicts, 3)) == 3


def test_rungs_are_a_ninth_a_third_and_the_whole_and_24_steps_at_the_least():
    assert [rung.steps for rung in rungs_of(270, 300)] == [30, 90, 270]
    assert [rung.steps for rung in rungs_of(100, 300)] == [24, 49, 100]
    assert [rung.steps for rung in rungs_of(72, 300)] == [24, 42, 72]
    assert [rung.steps for rung in rungs_of(20, 300)] == [20]
    assert [rung.number for rung in rungs_of(72, 300)] == [1, 2, 3]


def test_a_small_budget_trains_few_families_and_these_long_enough():
    facts = field()
    floor = replace(facts[0], name="floor", family="floor", step_seconds=0.05)
    ladder = plan_ladder([*facts, floor], seconds=70, full_steps=100, costs=COSTS, floor=floor)
    assert ladder.rungs[-1].steps >= FEWEST_STEPS
    begun = {arm.family for arm in (*facts, floor) if arm.name in ladder.arms}
    assert {"lora", "adapter", "floor"} <= begun and "prefix" not in begun
    assert set(untried(facts, ladder)) == {"lora", "adapter", "ia3", "prefix"} - begun
    with pytest.raises(TooSmall) as caught:
        plan_ladder([*facts, floor], seconds=5, full_steps=100, costs=COSTS, floor=floor)
    enough = caught.value.seconds * 1.001
    least = plan_ladder([*facts, floor], seconds=enough, full_steps=100, costs=COSTS, floor=floor)
    assert set(least.arms) == {"lora1@0.0003", "adapter1@0.0003", "floor"}


def test_arms_have_room_in_the_order_of_what_is_expected_of_them():
    facts = field(("lora", "ia3"))
    floor = replace(facts[1], name="floor@0.0003", family="floor")
    slower = replace(floor, name="floor@0.0001", lr=1e-4, usual_rate=False)
    order = [arm.name for arm in by_worth([*facts, slower, floor], floor)]
    assert order[:3] == ["floor@0.0003", "lora1@0.0003", "ia31@0.0003"]
    assert order[3:7] == ["lora1@0.001", "ia31@0.001", "lora1@0.0001", "ia31@0.0001"]
    assert order[7:10] == ["floor@0.0001", "lora2@0.0003", "ia32@0.0003"]
    assert len(set(order)) == len(facts) + 2
    without = [arm.name for arm in by_worth(facts, None)]
    assert without == [name for name in order if not name.startswith("floor")]


def test_other_rates_have_room_before_a_second_finalist():
    facts = field(sizes=(1,))
    ladders = [ladder_for(seconds, facts) for seconds in range(120, 300, 5)]
    assert {1, 2} <= {ladder.depth.finalists for ladder in ladders}
    for ladder in ladders:
        if len(ladder.arms) < len(facts):
            assert ladder.depth.finalists == 1, ladder


def test_time_that_is_left_makes_the_finals_longer_and_then_deeper():
    arms = one_each(field())[:2]

    def fitting(seconds):
        return finals_that_fit(arms, seconds=seconds, steps=72, most_steps=800, costs=COSTS)

    tight, longer, deeper = fitting(10), fitting(200), fitting(4000)
    assert (tight.steps, tight.depth.rates) == (72, 1)
    assert longer.depth == replace(DEPTHS[0], finalists=2) and 72 < longer.steps < 216
    assert deeper.steps == 216 and (deeper.depth.seeds, deeper.depth.rates) == (5, 3)
    for found, seconds in ((longer, 200), (deeper, 4000)):
        assert finals_seconds(found.arms, found.steps, found.depth, COSTS) <= seconds
