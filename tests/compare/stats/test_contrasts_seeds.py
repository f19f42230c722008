"""A printed difference is that of the two printed scores, whatever seeds the rows have."""

import numpy as np
import pytest

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.contrasts import contrasts
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.stats.significance import paired_difference

LABELS = tuple([0, 1] * 100)
HEAD, LORA = ("head", "fp32"), ("lora", "fp32")


def run(accuracy: float, seed: int) -> Predictions:
    """Predictions of which exactly that part is right."""
    order = np.random.default_rng(seed).permutation(200)
    wrong = set(order[: round(200 * (1 - accuracy))].tolist())
    predicted = tuple(1 - label if n in wrong else label for n, label in enumerate(LABELS))
    return Predictions(labels=LABELS, predicted=predicted)


@pytest.mark.parametrize("name", ["accuracy", "f1_macro"])
@pytest.mark.parametrize("seeds", [(0,), (0, 1), (1, 2), (3,), (2, 3, 4), (0, 1, 2)])
def test_the_difference_is_that_of_the_scores(name: str, seeds: tuple[int, ...]) -> None:
    metric = METRICS.get(name)
    head = {0: run(0.85, 0), 1: run(0.60, 1), 2: run(0.65, 2)}
    lora = {seed: run(0.7, 10 + seed) for seed in seeds}
    shown = contrasts({LORA: lora, HEAD: head}, {LORA: HEAD}, metric)[LORA]
    means = [np.mean([metric.value(p) for p in row.values()]) for row in (lora, head)]
    assert shown.points == pytest.approx(100 * (means[0] - means[1]))
    assert shown.low <= shown.points <= shown.high


def test_one_seed_beside_three_follows_the_documented_rule() -> None:
    head = {0: run(0.85, 0), 1: run(0.60, 1), 2: run(0.65, 2)}
    lora = {0: run(0.70, 3)}
    shown = contrasts({LORA: lora, HEAD: head}, {LORA: HEAD}, METRICS.get("accuracy"))[LORA]
    ruled = paired_difference(list(lora.values()), list(head.values()))
    assert (shown.points, shown.p, shown.about) == (ruled.points, ruled.p, "methods")
    assert shown.p > 0.9


def test_the_order_in_which_seeds_were_stored_does_not_matter() -> None:
    head = {seed: run(0.6 + seed / 20, seed) for seed in (0, 1, 2)}
    lora = {seed: run(0.65 + seed / 20, 20 + seed) for seed in (2, 0, 1)}
    metric = METRICS.get("accuracy")
    one = contrasts({LORA: lora, HEAD: head}, {LORA: HEAD}, metric)[LORA]
    other = contrasts({LORA: dict(sorted(lora.items())), HEAD: head}, {LORA: HEAD}, metric)[LORA]
    assert one == other


def by_hand(one: list[Predictions], other: list[Predictions]) -> tuple[float, float]:
    """The difference in points and its p for rows that are not paired, from scipy alone."""
    from scipy import integrate, stats

    right = [np.array([p.predicted for p in row]) == np.array(LABELS) for row in (one, other)]
    scores = [each.mean(axis=1) for each in right]
    change = scores[0].mean() - scores[1].mean()
    between = np.sqrt(sum(np.var(each, ddof=1) / len(each) for each in scores))
    examples = right[0].mean(axis=0) - right[1].mean(axis=0)
    within = np.std(examples, ddof=1) / np.sqrt(len(LABELS))
    freedom = min(map(len, scores)) - 1

    def beyond(t: float) -> float:
        ends = (-abs(change) - between * t) / within, (abs(change) - between * t) / within
        return float(stats.t.pdf(t, freedom) * (stats.norm.cdf(ends[0]) + stats.norm.sf(ends[1])))

    of_methods, _ = integrate.quad(beyond, -np.inf, np.inf, limit=500)
    of_models = 2 * stats.t.sf(abs(change) / within, len(LABELS) - 1)
    return 100 * change, max(of_methods, of_models)


@pytest.mark.parametrize("seeds", [(3, 4, 5), (1, 2, 3), (0, 1, 3), (0, 1), (5, 6, 7, 8)])
def test_rows_of_other_seeds_are_not_paired(seeds: tuple[int, ...]) -> None:
    head = {0: run(0.80, 0), 1: run(0.60, 1), 2: run(0.65, 2)}
    lora = {seed: run(0.70 + 0.03 * n, 10 + seed) for n, seed in enumerate(seeds)}
    shown = contrasts({LORA: lora, HEAD: head}, {LORA: HEAD}, METRICS.get("accuracy"))[LORA]
    points, p = by_hand(list(lora.values()), list(head.values()))
    assert (shown.points, shown.p) == (pytest.approx(points), pytest.approx(p, abs=2e-4))


def test_the_number_that_a_seed_has_pairs_nothing_where_the_other_row_lacks_it() -> None:
    """Shifting one row's seeds past the other's may not change the figure with them."""
    metric = METRICS.get("accuracy")
    head = {seed: run(0.6 + seed / 10, seed) for seed in (0, 1, 2)}
    found = []
    for order in ((3, 4, 5), (5, 4, 3)):
        lora = {seed: run(0.65 + n / 10, 20 + n) for n, seed in enumerate(order)}
        found.append(contrasts({LORA: lora, HEAD: head}, {LORA: HEAD}, metric)[LORA])
    assert (found[0].points, found[0].p) == pytest.approx((found[1].points, found[1].p))
