"""The time of the finals: rows and seeds are left out before it is over."""

import pytest

from deltakit.choose.decide.finals_time import FinalsTime


def test_rows_have_room_while_a_second_seed_of_all_has() -> None:
    time = FinalsTime(budget=100, once=10, measured=1)
    for _ in range(2):
        time.took(40, 4)  # three rates and the training
    assert time.spent == 80 and time.slowest == 10
    assert not time.has_room_for_row(2, 4)  # 40 for it, 30 for the second seeds
    assert not time.has_room_for_seed(2, 1)  # 20 for it, 4 for measuring, 10 once
    assert FinalsTime(budget=114, once=10, measured=1, spent=80, slowest=10).has_room_for_seed(2, 1)


@pytest.mark.parametrize("slow", [0.5, 1.0, 2.0, 4.0])
def test_the_budget_is_kept_where_each_training_is_slower_than_planned(slow: float) -> None:
    """Planned: four rows of three seeds, three rates each, ten seconds a training."""
    time = FinalsTime(budget=250, once=8, measured=0.5)
    rows = 0
    while rows < 4 and (rows < 2 or time.has_room_for_row(rows, 4)):
        time.took(slow * 40, 4)
        rows += 1
    seeds = 1
    while seeds < 3 and time.has_room_for_seed(rows, seeds):
        for _ in range(rows):
            time.took(slow * 10, 1)
        seeds += 1
    print(f"{slow} times as slow: {rows} rows, {seeds} seeds, {time.spent:.0f} s")
    assert time.spent + time.once + rows * seeds * time.measured <= 1.1 * max(250, slow * 80 + 9)
    assert (rows, seeds) == (4, 3) or slow >= 1.0
