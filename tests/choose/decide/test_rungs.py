"""The rungs: their steps, and those after a first one that was too short."""

from deltakit.choose.decide.rungs import longer_rungs, rungs_of


def test_rungs_are_a_ninth_a_third_and_the_whole_and_24_steps_at_the_least():
    assert [rung.steps for rung in rungs_of(270, 300)] == [30, 90, 270]
    assert [rung.steps for rung in rungs_of(100, 300)] == [24, 49, 100]
    assert [rung.steps for rung in rungs_of(72, 300)] == [24, 42, 72]
    assert [rung.steps for rung in rungs_of(20, 300)] == [20]
    assert [rung.number for rung in rungs_of(72, 300)] == [1, 2, 3]


def test_a_longer_first_rung_has_twice_the_steps_and_two_thirds_of_the_last_at_most():
    first, *_, last = rungs_of(100, 300)
    longer = longer_rungs(first, last)
    assert [(rung.number, rung.steps) for rung in longer] == [(2, 48), (3, 70), (4, 100)]
    assert longer_rungs(longer[0], longer[-1]) == ()
    first, *_, last = rungs_of(72, 300)
    assert [rung.steps for rung in longer_rungs(first, last)] == [48, 59, 72]
    first, *_, last = rungs_of(60, 300)
    assert longer_rungs(first, last) == ()
