"""The size of the finals that fit into what time is left."""

from dataclasses import replace

from simulated_arms import COSTS, field

from deltakit.choose.decide.finals_size import DEPTHS, finals_seconds, finals_that_fit
from deltakit.choose.decide.ladder import one_each


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


def test_two_finalists_that_train_longer_come_before_more_rates():
    arms = one_each(field())[:2]
    more_rates = replace(DEPTHS[1], finalists=2)

    def fitting(most_steps):
        return finals_that_fit(arms, seconds=enough, steps=100, most_steps=most_steps, costs=COSTS)

    enough = max(
        finals_seconds(arms, 200, DEPTHS[2], COSTS), finals_seconds(arms, 100, more_rates, COSTS)
    )
    longer, short = fitting(200), fitting(100)
    assert (longer.depth, longer.steps) == (DEPTHS[2], 200)
    assert (short.depth, short.steps) == (more_rates, 100)
