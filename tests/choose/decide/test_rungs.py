"""The rungs: their steps, and those after a first one that was too short."""

from simulated_arms import field

from deltakit.choose.decide.rungs import bracket_seconds, joining, longer_rungs, rungs_of


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


def test_as_many_arms_join_as_there_is_time_for_and_steps_that_were_taken_are_free():
    begun, waiting = field(("lora",), sizes=(1,))[:1], field(("adapter",))
    rungs = longer_rungs(*rungs_of(100, 300)[::2])
    free = 24 * begun[0].step_seconds
    for number in range(len(waiting) + 1):
        enough = bracket_seconds((*begun, *waiting[:number]), rungs) - free
        for before, seconds, joined in (
            (24, enough + 1e-6, number),
            (24, enough - 1e-6, max(0, number - 1)),
            (0, enough + free + 1e-6, number),
        ):
            found = joining(begun, waiting, rungs, before=before, seconds=seconds)
            assert found == tuple(waiting[:joined])
