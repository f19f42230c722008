import itertools

import pytest

from deltakit.compare.schema import Predictions
from deltakit.compare.stats import (
    across_seeds,
    mcnemar,
    paired_difference,
    proportion_interval,
)
from deltakit.errors import InvalidConfig


def outcomes(*right: int) -> Predictions:
    """Predictions that are right where the argument is 1."""
    labels = tuple(index % 2 for index in range(len(right)))
    predicted = tuple(
        label if good else 1 - label for label, good in zip(labels, right, strict=True)
    )
    return Predictions(labels=labels, predicted=predicted)


def pair(both: int, first: int, second: int, neither: int) -> tuple[Predictions, Predictions]:
    """Two rows by how many examples both, only the first, only the second and neither get right."""
    one = [1] * both + [1] * first + [0] * second + [0] * neither
    two = [1] * both + [0] * first + [1] * second + [0] * neither
    return outcomes(*one), outcomes(*two)


# ------------------------------------------------------------------------- proportion_interval


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe (1998), Table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_is_the_published_one(
    correct: int, n: int, low: float, high: float
) -> None:
    assert proportion_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_stays_within_zero_and_one() -> None:
    low, high = proportion_interval(20, 20)
    assert 0.8 < low < 1
    assert high == pytest.approx(1)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 4)])
def test_what_is_no_proportion_raises(correct: int, n: int) -> None:
    with pytest.raises(InvalidConfig, match=f"{correct} right of {n} is not a proportion"):
        proportion_interval(correct, n)


# ------------------------------------------------------------------------------------- mcnemar


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_pairs() -> None:
    # 8 of 10 or more extreme, twice: 2 (45 + 10 + 1) / 1024.
    assert mcnemar(*pair(30, 8, 2, 10)) == pytest.approx(112 / 1024)


def test_mcnemar_is_symmetric() -> None:
    first, second = pair(5, 7, 1, 3)
    assert mcnemar(first, second) == mcnemar(second, first)


def test_mcnemar_does_not_care_for_concordant_pairs() -> None:
    assert mcnemar(*pair(0, 8, 2, 0)) == mcnemar(*pair(500, 8, 2, 90))


def test_rows_that_agree_everywhere_have_p_one() -> None:
    assert mcnemar(*pair(4, 0, 0, 3)) == 1.0


def test_a_changed_prediction_that_stays_wrong_is_no_discordant_pair() -> None:
    labels = (0, 1, 2)
    first = Predictions(labels=labels, predicted=(1, 1, 2))
    second = Predictions(labels=labels, predicted=(2, 1, 2))
    assert mcnemar(first, second) == 1.0


def test_mcnemar_of_different_splits_raises() -> None:
    first = Predictions(labels=(0, 1), predicted=(0, 1))
    for labels in ((1, 1), (0, 1, 1)):
        with pytest.raises(InvalidConfig, match="different splits"):
            mcnemar(first, Predictions(labels=labels, predicted=labels))


def test_torn_predictions_raise() -> None:
    with pytest.raises(InvalidConfig, match="1 predictions for 2 test examples"):
        mcnemar(outcomes(1, 1), Predictions(labels=(0, 1), predicted=(0,)))


# -------------------------------------------------------------------------------- across_seeds


def test_one_seed_has_no_interval() -> None:
    assert across_seeds([0.7]) == (0.7, None)


def test_several_seeds_have_students_interval() -> None:
    # t(0.975, 2) = 4.3027 and a standard error of 1 / sqrt(3).
    mean, half = across_seeds([1.0, 2.0, 3.0])
    assert mean == pytest.approx(2.0)
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-6)


def test_equal_seeds_have_an_interval_of_zero() -> None:
    assert across_seeds([0.5, 0.5, 0.5]) == (0.5, 0.0)


def test_no_seeds_raise() -> None:
    with pytest.raises(InvalidConfig, match="no values to average"):
        across_seeds([])


# --------------------------------------------------------------------------- paired_difference


def test_difference_is_in_points_with_an_interval_around_it() -> None:
    first, second = pair(60, 20, 10, 10)
    found = paired_difference([first], [second])
    assert found.points == pytest.approx(10.0)
    assert found.low < 10 < found.high
    # Mean 0.1 and standard deviation sqrt((0.3 - 0.01) 100 / 99), t(0.975, 99) = 1.98422.
    half = 100 * 1.984217 * ((0.3 - 0.01) / 99) ** 0.5
    assert found.high - found.points == pytest.approx(half, rel=1e-5)


def test_with_one_seed_p_is_mcnemars() -> None:
    first, second = pair(60, 20, 10, 10)
    assert paired_difference([first], [second]).p == mcnemar(first, second)


def test_difference_changes_its_sign_with_the_order() -> None:
    first, second = pair(6, 5, 2, 3)
    there, back = paired_difference([first], [second]), paired_difference([second], [first])
    assert (there.points, there.low) == pytest.approx((-back.points, -back.high))


def test_seeds_are_no_new_examples() -> None:
    first, second = pair(60, 20, 10, 10)
    once, thrice = paired_difference([first], [second]), paired_difference([first] * 3, [second])
    assert (thrice.points, thrice.low, thrice.high) == (once.points, once.low, once.high)


def test_seeds_are_pooled_by_example() -> None:
    seeds = [outcomes(1, 1, 0, 0), outcomes(1, 0, 0, 0)]
    found = paired_difference(seeds, [outcomes(0, 0, 0, 0)])
    assert found.points == pytest.approx(100 * (1 + 0.5) / 4)


def test_the_order_of_seeds_does_not_matter() -> None:
    seeds = [outcomes(1, 1, 0, 1, 0), outcomes(0, 1, 0, 1, 1), outcomes(1, 1, 1, 1, 0)]
    other = [outcomes(0, 1, 0, 0, 1)]
    found = [paired_difference(order, other) for order in itertools.permutations(seeds)]
    assert [each.p for each in found] == pytest.approx([found[0].p] * 6)


def test_several_seeds_that_agree_everywhere_differ_by_nothing() -> None:
    same = outcomes(1, 0, 1, 1)
    found = paired_difference([same, same], [same])
    assert (found.points, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_a_row_without_predictions_raises() -> None:
    with pytest.raises(InvalidConfig, match="without predictions"):
        paired_difference([], [outcomes(1)])


def test_any_seed_of_another_split_raises() -> None:
    with pytest.raises(InvalidConfig, match="different splits"):
        paired_difference([outcomes(1, 1), outcomes(1, 1, 1)], [outcomes(1, 0)])
