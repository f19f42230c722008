import itertools
import math
import re
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import ttest_1samp

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.significance import (
    across_seeds,
    compact_letter_display,
    difference,
    evidence_from_examples,
    evidence_from_metric,
    evidence_from_predictions,
    holm,
    is_constant,
    mcnemar,
    paired_difference,
    proportion_interval,
)
from deltakit.compare.stats.t_plus_normal import TPlusNormal
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
    assert thrice.p == once.p
    assert (thrice.points, thrice.low, thrice.high) == pytest.approx(
        (once.points, once.low, once.high)
    )


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


def test_seeds_that_repeat_one_another_are_tested_as_one() -> None:
    first, second = pair(30, 5, 0, 10)
    found = paired_difference([first] * 3, [second] * 3)
    # Five examples that all changed for the better; a t-test would say 0.02.
    assert found.p == mcnemar(first, second) == pytest.approx(2 / 2**5)
    assert found.about == "methods"


def test_one_seed_is_about_models_and_says_what_it_could_have_found() -> None:
    found = paired_difference(*([each] for each in pair(450, 50, 50, 450)))
    assert found.about == "models"
    # papers.md: 80 % power at 5 % takes 2.8 standard errors; 10 % of 1,000 examples differ.
    assert found.detectable == pytest.approx(100 * 2.8 * (0.1 / 1000) ** 0.5, rel=5e-3)


def test_rows_without_any_spread_have_no_detectable_difference() -> None:
    same = outcomes(1, 0, 1, 1)
    assert paired_difference([same], [same]).detectable is None


def test_what_seeds_are_known_to_vary_makes_one_seed_less_sure() -> None:
    first, second = ([each] for each in pair(600, 150, 50, 200))
    alone, told = paired_difference(first, second), paired_difference(first, second, seed_sd=3)
    assert alone.p < 1e-6
    # Variances in points: 1.9 of the examples, 2 times 9 of the seeds.
    assert told.p == pytest.approx(math.erfc(10 / (1.9 + 18) ** 0.5 / 2**0.5), rel=0.02)
    assert told.about == "methods"
    assert (told.detectable or 0) > (alone.detectable or 0)


def test_a_row_without_predictions_raises() -> None:
    with pytest.raises(InvalidConfig, match="without predictions"):
        paired_difference([], [outcomes(1)])


def test_any_seed_of_another_split_raises() -> None:
    with pytest.raises(InvalidConfig, match="different splits"):
        paired_difference([outcomes(1, 1), outcomes(1, 1, 1)], [outcomes(1, 0)])


# ---------------------------------------------------------------------------------- difference

VARIED = np.array([0.1, -0.2, 0.3, 0.0, 0.2, -0.1, 0.05, 0.15])


def versus_nothing(values: np.ndarray) -> tuple[float, float]:
    """The p and the half-width, in points, of a row against one of zeros."""
    found = difference(
        evidence_from_examples(values), evidence_from_examples(np.zeros_like(values))
    )
    assert found.high - found.points == pytest.approx(found.points - found.low)
    return found.p, found.high - found.points


def test_seeds_alone_are_a_t_test_over_seeds() -> None:
    seeds = np.array([0.1, 0.2, 0.4])
    p, _ = versus_nothing(np.repeat(seeds[:, None], 50, axis=1))
    assert p == pytest.approx(ttest_1samp(seeds, 0).pvalue, rel=1e-6)


def test_examples_alone_are_a_t_test_over_examples() -> None:
    p, _ = versus_nothing(np.tile(VARIED, (3, 1)))
    assert p == pytest.approx(ttest_1samp(VARIED, 0).pvalue, rel=1e-6)


def test_seeds_and_examples_add_up() -> None:
    seeds = np.array([0.1, 0.2, 0.4])
    _, half = versus_nothing(seeds[:, None] + VARIED)
    error = TPlusNormal(
        student=seeds.std(ddof=1) / 3**0.5, normal=VARIED.std(ddof=1) / 8**0.5, df=2
    )
    assert half == pytest.approx(100 * error.quantile(0.975))


def test_what_moves_one_seed_alone_counts_once() -> None:
    # The same few examples go up in one seed and down in the other: seeds share no movement.
    values = np.array([[0.3, 0.0, 0.2, 0.1], [0.0, 0.3, 0.1, 0.2]]) + [[0.0], [0.1]]
    _, half = versus_nothing(values)
    assert half == pytest.approx(100 * TPlusNormal(student=0.05, normal=0, df=1).quantile(0.975))


def test_seeds_that_agree_by_chance_are_no_surer_than_their_models() -> None:
    # Every seed gains exactly a third, and the examples that gain are seldom the same.
    values = np.array([[1.0, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]])
    p, _ = versus_nothing(values)
    assert p == pytest.approx(ttest_1samp(values.mean(axis=0), 0).pvalue, rel=1e-6)


def test_other_numbers_of_seeds_have_the_fewer_degrees_of_freedom() -> None:
    first, second = np.array([0.5, 0.6, 0.7]), np.array([0.3, 0.5])
    rows = [
        evidence_from_examples(np.repeat(seeds[:, None], 9, axis=1)) for seeds in (first, second)
    ]
    found = difference(*rows)
    spread = (first.var(ddof=1) / 3 + second.var(ddof=1) / 2) ** 0.5
    error = TPlusNormal(student=spread, normal=0, df=1)
    assert found.p == pytest.approx(error.tails(0.2))


def test_a_single_seed_is_taken_to_vary_as_the_others() -> None:
    first, second = np.array([0.5, 0.6, 0.7]), np.array([0.3])
    rows = [
        evidence_from_examples(np.repeat(seeds[:, None], 9, axis=1)) for seeds in (first, second)
    ]
    error = TPlusNormal(student=(0.01 / 3 + 0.01) ** 0.5, normal=0, df=2)
    assert difference(*rows).p == pytest.approx(error.tails(0.3))


def test_rows_of_other_examples_raise() -> None:
    with pytest.raises(InvalidConfig, match="rows with 8 and 7 test examples"):
        difference(evidence_from_examples([VARIED]), evidence_from_examples([VARIED[1:]]))


TWO_ROWS = st.tuples(st.just(2), st.integers(1, 4), st.integers(2, 12)).flatmap(
    lambda shape: arrays(np.int8, shape, elements=st.integers(0, 1))
)
"""Right or wrong, of shape (2, seeds, examples)."""


def compared(rows: np.ndarray) -> tuple[float, float, float, float]:
    first, second = ([outcomes(*seed) for seed in row] for row in rows.tolist())
    found = paired_difference(first, second)
    return found.points, found.low, found.high, found.p


@settings(max_examples=60, deadline=None)
@given(TWO_ROWS)
def test_the_other_way_round_it_is_the_same_with_the_other_sign(rows: np.ndarray) -> None:
    points, low, high, p = compared(rows)
    assert compared(rows[::-1]) == pytest.approx((-points, -high, -low, p))
    assert low <= points <= high
    assert 0 <= p <= 1


@settings(max_examples=60, deadline=None)
@given(TWO_ROWS, st.randoms(use_true_random=False))
def test_no_order_matters(rows: np.ndarray, random: Random) -> None:
    shuffled = rows[:, random.sample(range(rows.shape[1]), rows.shape[1])]
    shuffled = shuffled[:, :, random.sample(range(rows.shape[2]), rows.shape[2])]
    assert compared(shuffled) == pytest.approx(compared(rows), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(TWO_ROWS)
def test_a_row_does_not_differ_from_itself(rows: np.ndarray) -> None:
    assert compared(rows[[0, 0]]) == (0, 0, 0, 1)


# -------------------------------------------------------------------------------- any other metric


def agreement(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float((labels == predicted).mean())


def test_a_mean_by_bootstrap_is_nearly_the_mean_itself() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, size=300)
    predicted = np.where(random.random((3, 300)) < 0.8, labels, 1 - labels)
    drawn = evidence_from_metric(agreement, labels, predicted)
    exact = evidence_from_examples(predicted == labels)
    assert drawn.scores == pytest.approx(exact.scores)
    spreads = [np.linalg.norm(evidence.moves, axis=1) for evidence in (drawn, exact)]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.1)


def test_rows_are_resampled_together() -> None:
    labels, predicted = np.arange(40) % 2, np.arange(40)[None] % 3 % 2
    found = difference(*(evidence_from_metric(agreement, labels, predicted) for _ in range(2)))
    assert (found.points, found.p, found.detectable) == (0, 1, None)


def test_a_metric_without_a_value_raises() -> None:
    with pytest.raises(InvalidConfig, match="not a finite number on some resample"):
        evidence_from_metric(lambda labels, predicted: math.nan, [0, 1], [[0, 1]])


@pytest.mark.parametrize("predicted", [[0, 1], [[0, 1, 1]], []])
def test_predictions_of_another_shape_raise(predicted: list[int]) -> None:
    with pytest.raises(InvalidConfig, match=r"do not fit labels of shape \(2,\)"):
        evidence_from_metric(agreement, [0, 1], predicted)


@pytest.mark.parametrize("values", [[1.0], [[]], [[math.nan]]])
def test_values_that_are_not_one_number_an_example_raise(values: list[float]) -> None:
    with pytest.raises(InvalidConfig, match="not one finite number for each seed and example"):
        evidence_from_examples(values)


def test_accuracy_is_the_mean_of_what_is_right() -> None:
    assert evidence_from_predictions(
        [outcomes(1, 1, 0), outcomes(0, 0, 0)]
    ).scores == pytest.approx([2 / 3, 0])


# ------------------------------------------------------------------------------------ several rows


def test_holm_by_hand() -> None:
    # 0.01 times 3; 0.03 times 2; and 0.04 times 1, which must not fall below the one before.
    adjusted = holm({"lora": 0.04, "ia3": 0.01, "prefix": 0.03})
    assert adjusted == pytest.approx({"lora": 0.06, "ia3": 0.03, "prefix": 0.06})
    assert list(adjusted) == ["lora", "ia3", "prefix"]


def test_holm_stays_a_probability_and_takes_any_keys() -> None:
    assert holm({("a", "b"): 0.9, ("a", "c"): 0.8}) == {("a", "b"): 1.0, ("a", "c"): 1.0}
    assert holm({}) == {}


@pytest.mark.parametrize(
    ("different", "letters"),
    [
        ([], "a a a a"),
        ([("p", "s")], "a ab ab b"),
        ([("p", "r"), ("p", "s"), ("s", "q")], "a ab bc c"),
        ([("p", "q"), ("p", "r"), ("p", "s")], "a b b b"),
        (list(itertools.combinations("pqrs", 2)), "a b c d"),
    ],
)
def test_rows_share_a_letter_where_they_cannot_be_told_apart(
    different: list[tuple[str, str]], letters: str
) -> None:
    assert compact_letter_display("pqrs", different) == dict(
        zip("pqrs", letters.split(), strict=True)
    )


def test_letters_go_on_after_z() -> None:
    labels = [f"row {index}" for index in range(28)]
    letters = compact_letter_display(labels, list(itertools.combinations(labels, 2)))
    assert [letters[label] for label in labels[24:]] == ["y", "z", "a1", "b1"]


PAIRS = list(itertools.combinations("pqrstu", 2))


@given(st.sets(st.sampled_from(PAIRS)))
def test_two_rows_share_a_letter_exactly_where_they_are_not_different(
    different: set[tuple[str, str]],
) -> None:
    letters = {
        label: set(re.findall("[a-z][0-9]*", text))
        for label, text in compact_letter_display("pqrstu", different).items()
    }
    assert "a" in letters["p"]
    assert all(bool(letters[a] & letters[b]) != ((a, b) in different) for a, b in PAIRS)


def test_a_run_that_predicts_one_class_has_collapsed() -> None:
    assert is_constant(Predictions(labels=(0, 1, 1), predicted=(1, 1, 1)))
    assert not is_constant(Predictions(labels=(0, 1, 1), predicted=(1, 0, 1)))
    assert not is_constant(Predictions(labels=(1, 1), predicted=(1, 1)))
