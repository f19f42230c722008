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
