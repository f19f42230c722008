"""The bracket: its budget, its families, and that a killed run decides as an undisturbed one."""

from dataclasses import replace

import pytest
from simulated_arms import (
    ACCURACY,
    COSTS,
    LATE,
    DyingJournal,
    Killed,
    SimulatedArm,
    Truth,
    arms_of,
    drifting,
    field,
    ladder_for,
    majority,
    simulated_predictions,
    starters,
)

from deltakit.choose.decide.arms import Memory, Reading, Rung
from deltakit.choose.decide.bracket import run_bracket
from deltakit.choose.decide.finals_size import finals_seconds, finals_that_fit
from deltakit.choose.decide.halving import Fate, finalists


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
