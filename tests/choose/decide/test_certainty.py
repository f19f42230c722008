"""How sure a choice is: of choices that are called 90 % sure, nine in ten hold."""

import numpy as np
import pytest
from simulated_arms import ACCURACY, simulated_predictions

from deltakit.choose.decide.certainty import choose_finalist, mean_score, pooled, probability
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import METRICS


def seeds_of(accuracies, rows, name, split=0):
    return [simulated_predictions(a, rows, f"{name}{at}", split) for at, a in enumerate(accuracies)]


def test_the_cheapest_of_those_that_are_as_good_is_chosen():
    finalists = {name: seeds_of([0.8] * 3, 400, "same") for name in ("dear", "cheap")}
    finalists["bad"] = seeds_of([0.6] * 3, 400, "bad")
    costs = {"dear": 9.0, "cheap": 2.0, "bad": 1.0}
    assert choose_finalist(finalists, costs, ACCURACY) == "cheap"


def test_a_better_one_is_not_given_up_for_its_cost():
    finalists = {"dear": seeds_of([0.85] * 3, 800, "a"), "cheap": seeds_of([0.8] * 3, 800, "b")}
    assert choose_finalist(finalists, {"dear": 9.0, "cheap": 1.0}, ACCURACY) == "dear"


def test_certainty_follows_the_distance():
    good = seeds_of([0.85] * 3, 2000, "a")
    other = seeds_of([0.75] * 3, 2000, "b")
    twin = seeds_of([0.85] * 3, 2000, "c")
    assert probability({"a": good}, "a", ACCURACY) == 1.0
    assert probability({"a": good, "b": other}, "a", ACCURACY) > 0.99
    assert probability({"a": good, "b": other}, "b", ACCURACY) < 0.01
    assert 0.2 < probability({"a": good, "c": twin}, "a", ACCURACY) < 0.98


@pytest.mark.parametrize("seeds", [(1, 1), (2, 2), (3, 2)])
def test_any_number_of_seeds_has_a_certainty(seeds):
    finalists = {
        name: seeds_of([0.8] * number, 300, name) for name, number in zip("ab", seeds, strict=True)
    }
    assert 0.0 < probability(finalists, "a", ACCURACY) <= 1.0


def test_it_takes_metrics_of_which_less_is_better():
    error = METRICS.get("mse")
    labels = tuple(float(n % 7) for n in range(200))
    noise = np.random.default_rng(0).normal(size=200)

    def off(by):
        return [Predictions(labels=labels, predicted=tuple(np.add(labels, by * noise)))]

    finalists = {"near": off(0.01), "far": off(0.5)}
    assert choose_finalist(finalists, {"near": 2.0, "far": 1.0}, error) == "near"
    assert probability(finalists, "near", error) > 0.9
    assert probability(finalists, "far", error) < 0.1


def test_two_splits_are_pooled_in_order():
    one, two = (simulated_predictions(0.7, rows, "x", rows) for rows in (30, 50))
    both = pooled(one, two)
    assert len(both.labels) == 80 and both.predicted == one.predicted + two.predicted
    assert mean_score([both], ACCURACY) == pytest.approx(
        (30 * mean_score([one], ACCURACY) + 50 * mean_score([two], ACCURACY)) / 80
    )


@pytest.mark.slow
def test_calibration():
    """Three finalists whose true distances are drawn: near ties, and clear cases."""
    generator = np.random.default_rng(0)
    called, held = [], []
    for _ in range(120):
        for spread in (0.005, 0.015, 0.04):
            for number, rows in ((2, 300), (3, 800)):
                true = 0.8 + generator.normal(0, spread, 3)
                actual = np.clip(true + generator.normal(0, 0.006, (number, 3)), 0.5, 0.99)
                split = int(generator.integers(1 << 30))
                val, test = (
                    {str(m): seeds_of(actual[:, m], rows, f"{m}-", split + half) for m in range(3)}
                    for half in (0, 1)
                )
                choice = choose_finalist(val, {"0": 1.0, "1": 2.0, "2": 3.0}, ACCURACY)
                both = {m: list(map(pooled, val[m], test[m])) for m in val}
                called.append(probability(both, choice, ACCURACY))
                held.append(100 * (true.max() - true[int(choice)]) <= 0.5)
    sure = [hold for p, hold in zip(called, held, strict=True) if 0.85 <= p < 0.95]
    print(f"called 85 to 95 % sure: {len(sure)}, of which {np.mean(sure):.3f} hold")
    print(f"all: called {np.mean(called):.3f}, held {np.mean(held):.3f}")
    assert len(sure) > 100
    assert 0.85 <= np.mean(sure) <= 0.95
    assert abs(np.mean(called) - np.mean(held)) < 0.05
