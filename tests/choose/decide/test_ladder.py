"""The ladder: what a budget has room for, and in which order it is given up."""

from dataclasses import replace

import pytest
from simulated_arms import COSTS, field, ladder_for

from deltakit.choose.decide.finals_size import DEPTHS, STRETCH, finals_seconds
from deltakit.choose.decide.ladder import (
    FEWEST_STEPS,
    TooSmall,
    by_worth,
    one_each,
    plan_ladder,
    untried,
)


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


def test_longer_finals_come_before_arms_of_other_sizes():
    facts = field()
    for seconds in range(150, 1500, 50):
        ladder = ladder_for(seconds, facts, full_steps=400)
        last = ladder.rungs[-1].steps
        if last < 400 and len(ladder.arms) == len(facts):
            typical = [arm for arm in facts if arm.name in ladder.arms]
            longer = finals_seconds(typical, min(400, STRETCH * last), ladder.depth, COSTS)
            assert ladder.finals_seconds == pytest.approx(longer)
    assert {len(ladder_for(s, facts, full_steps=400).arms) for s in (150, 400)} != {len(facts)}


def test_lower_rates_have_room_first_where_the_finals_are_longer():
    facts = field(("lora", "ia3"))
    order = [arm.name for arm in by_worth(facts, None, lower_first=True)]
    assert order[:4] == ["lora1@0.0003", "ia31@0.0003", "lora1@0.0001", "ia31@0.0001"]
    assert order[4:6] == ["lora1@0.001", "ia31@0.001"]


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
