"""The opening: a first rung that is too short for most methods."""

from dataclasses import replace

import pytest
from simulated_arms import (
    ACCURACY,
    DyingJournal,
    Killed,
    Truth,
    arms_of,
    field,
    ladder_for,
    late_field,
    majority,
    starters,
)

from deltakit.choose.decide.arms import Memory
from deltakit.choose.decide.bracket import run_bracket
from deltakit.choose.decide.halving import Fate
from deltakit.choose.decide.ladder import one_each


def test_killed_while_the_first_rung_is_too_short_it_decides_as_undisturbed():
    ladder = ladder_for(150, late_field()[0])
    whole = Memory()
    undisturbed = run_bracket(late_field()[1], ladder, ACCURACY, whole, chance=majority)
    assert undisturbed.rungs[0].too_short
    for at in (0, 2, 3, 5, len(whole.kept) - 1):
        journal = DyingJournal(at)
        with pytest.raises(Killed):
            run_bracket(late_field()[1], ladder, ACCURACY, journal, chance=majority)
        journal.left = 10_000
        arms = late_field()[1]
        for arm in arms:
            done = [r.steps for (name, _), r in journal.kept.items() if name == arm.facts.name]
            arm.steps = max(done, default=0)
        again = run_bracket(arms, ladder, ACCURACY, journal, chance=majority)
        assert again.rungs == undisturbed.rungs and again.left_out == undisturbed.left_out, at
        assert again.seconds == pytest.approx(undisturbed.seconds)


def test_where_most_methods_are_at_chance_the_others_begin_at_a_longer_rung():
    facts, arms = late_field()
    ladder = ladder_for(150, facts)
    assert len(ladder.arms) > 3 and ladder.rungs[0].steps == 24
    result = run_bracket(arms, ladder, ACCURACY, Memory(), chance=majority)
    first, second, *_ = result.rungs
    assert first.too_short and not any(rung.too_short for rung in result.rungs[1:])
    assert {v.arm for v in first.verdicts} == {arm.name for arm in one_each(facts)}
    assert all(v.fate is Fate.KEPT and v.at_chance for v in first.verdicts)
    assert [rung.rung.number for rung in result.rungs] == [1, 2, 3, 4]
    assert second.rung.steps == 48 and result.rungs[-1].rung == replace(ladder.rungs[-1], number=4)
    joined = {v.arm for v in second.verdicts} - {v.arm for v in first.verdicts}
    assert joined and result.left_out
    assert set(ladder.arms) == {v.arm for v in second.verdicts} | set(result.left_out)
    assert list(result.left_out) == [name for name in ladder.arms if name in result.left_out]
    assert result.seconds <= ladder.bracket_seconds * 1.05
    # Each arm was trained once to each of its rungs, and no other was touched.
    assert {arm.facts.name for arm in arms if arm.calls} == {
        v.arm for rung in result.rungs for v in rung.verdicts
    }


def test_where_methods_have_learnt_all_arms_have_the_first_rung():
    facts = field(("lora", "adapter", "ia3"))
    ladder = ladder_for(150, facts)
    result = run_bracket(arms_of(facts), ladder, ACCURACY, Memory(), chance=majority)
    assert [each.rung for each in result.rungs] == list(ladder.rungs)
    assert {v.arm for v in result.rungs[0].verdicts} == set(ladder.arms)
    assert not result.left_out


def test_a_first_rung_is_made_longer_as_often_as_it_has_to_be():
    facts, arms = late_field(start=110)
    ladder = ladder_for(5000, facts, full_steps=300)
    result = run_bracket(arms, ladder, ACCURACY, Memory(), chance=majority)
    found = [(rung.rung.steps, rung.too_short) for rung in result.rungs]
    assert found[:3] == [(34, True), (68, True), (136, False)] and found[-1] == (300, False)
    assert not result.left_out  # there is time for all of them


def test_a_slow_machine_keeps_the_time_of_the_rungs_where_the_first_is_too_short():
    for slow in (1.3, 2.0):
        facts, arms = late_field()
        for arm in arms:
            arm.slow = slow
        ladder = ladder_for(250, facts)
        result = run_bracket(arms, ladder, ACCURACY, Memory(), chance=majority)
        assert result.rungs[0].too_short
        finals = slow * ladder.least_finals_seconds
        assert result.seconds + finals <= 1.1 * 250


def test_a_rung_that_is_too_short_calls_no_method_worse():
    truths = {
        "quick": Truth(final=0.95, half=1.0),
        "weak": Truth(final=0.68, half=1.0),
        **dict.fromkeys(("lora", "adapter", "prefix"), Truth(final=0.85, half=8.0, start=30)),
    }
    facts, arms = starters(truths)
    result = run_bracket(arms, ladder_for(400, facts), ACCURACY, Memory(), chance=majority)
    first = {v.arm.partition("1@")[0]: v for v in result.rungs[0].verdicts}
    assert result.rungs[0].too_short and not first["weak"].at_chance
    assert first["weak"].behind > 1.5 * first["weak"].detectable
    assert all(v.fate is Fate.KEPT for v in first.values())


def test_every_family_goes_on_from_the_first_rung_that_judges():
    facts, arms = late_field(start=30)
    for arm in arms:
        if arm.facts.family == "ia3":
            arm.truth = Truth(final=0.85, half=8.0, start=60)
    result = run_bracket(arms, ladder_for(150, facts), ACCURACY, Memory(), chance=majority)
    first, second, third = result.rungs[:3]
    assert first.too_short and not second.too_short
    assert all(v.at_chance for v in second.verdicts if v.arm.startswith("ia3"))
    assert {v.arm[:3] for v in third.verdicts} == {"lor", "ada", "ia3"}
