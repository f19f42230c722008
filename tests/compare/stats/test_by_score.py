"""Metrics of probabilities: equal to scikit-learn's or to their definition, with intervals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    roc_auc_score,
    top_k_accuracy_score,
)

from deltakit.compare.records.result import Predictions, Scores
from deltakit.compare.run.predict import score
from deltakit.compare.stats.metrics import METRICS, MeanMetric, Takes
from deltakit.compare.stats.significance import mcnemar, proportion_interval
from deltakit.errors import InvalidConfig

SCORED = [name for name, metric in METRICS.items() if metric.takes is Takes.SCORES]


def of(labels: np.ndarray, scores: np.ndarray) -> Predictions:
    several = labels.ndim > 1
    chosen = (scores > 0.5).astype(int) if several else scores.argmax(1)
    plain = [
        tuple(map(tuple, each.tolist())) if several else tuple(each.tolist())
        for each in (labels, chosen)
    ]
    return Predictions(labels=plain[0], predicted=plain[1], scores=Scores(scores))


def drawn(
    seed: int, classes: int, n: int = 60, *, ties: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Labels of every class, and probabilities that know something of them."""
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), draw.integers(classes, size=n - classes)])
    logits = draw.normal(size=(n, classes)) + 1.5 * np.eye(classes)[labels]
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    if ties:
        scores = np.maximum(np.round(scores, 1), 0.1)
        scores /= scores.sum(1, keepdims=True)
    return labels, scores


def drawn_sets(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Several labels, each of which some examples have and some have not."""
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.eye(4, dtype=int), (draw.random((n - 4, 4)) < 0.4).astype(int)])
    return labels, 1 / (1 + np.exp(-draw.normal(size=labels.shape) - labels))


def value(metric: str, labels: np.ndarray, scores: np.ndarray) -> float:
    return METRICS.get(metric).value(of(labels, scores))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_two_classes_are_as_in_scikit_learn(seed: int, ties: bool) -> None:
    labels, scores = drawn(seed, 2, ties=ties)
    second = scores[:, 1]
    assert value("roc_auc", labels, scores) == pytest.approx(roc_auc_score(labels, second))
    expected = average_precision_score(labels, second)
    assert value("average_precision", labels, scores) == pytest.approx(expected)
    assert value("brier", labels, scores) == pytest.approx(brier_score_loss(labels, second))
    assert value("log_loss", labels, scores) == pytest.approx(log_loss(labels, scores))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_several_classes_are_as_in_scikit_learn(seed: int, ties: bool) -> None:
    labels, scores = drawn(seed, 7, ties=ties)
    area = roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert value("roc_auc", labels, scores) == pytest.approx(area)
    hot = np.eye(7)[labels]
    precision = average_precision_score(hot, scores, average="macro")
    assert value("average_precision", labels, scores) == pytest.approx(precision)
    assert value("log_loss", labels, scores) == pytest.approx(log_loss(labels, scores))
    # scikit-learn has the sum over classes since 1.7, under the same name.
    assert value("brier", labels, scores) == pytest.approx(((scores - hot) ** 2).sum(1).mean())
    for k in (3, 5):
        expected = top_k_accuracy_score(labels, scores, k=k)
        assert value(f"top{k}_accuracy", labels, scores) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(8))
def test_several_labels_are_means_over_the_labels(seed: int) -> None:
    labels, scores = drawn_sets(seed)
    columns = list(zip(labels.T, scores.T, strict=True))
    for name, one in (
        ("roc_auc", roc_auc_score),
        ("average_precision", average_precision_score),
        ("log_loss", log_loss),
        ("brier", brier_score_loss),
    ):
        expected = np.mean([one(*pair) for pair in columns])
        assert value(name, labels, scores) == pytest.approx(expected), name


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_calibration_error_is_its_definition(seed: int, classes: int) -> None:
    labels, scores = drawn(seed, classes)
    sure, right = scores.max(1), scores.argmax(1) == labels
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (sure > low) & (sure <= low + 1 / 15)
        if inside.any():
            gap = abs(right[inside].mean() - sure[inside].mean())
            expected += inside.mean() * gap
    assert value("ece", labels, scores) == pytest.approx(expected)


def test_the_calibration_error_of_labels_counts_each_of_them() -> None:
    labels = np.array([[1, 0], [1, 0], [0, 0], [1, 1]])
    scores = np.array([[0.9, 0.5], [0.9, 0.5], [0.9, 0.5], [0.9, 0.5]])
    assert value("ece", labels, scores) == pytest.approx((abs(0.75 - 0.9) + abs(0.25 - 0.5)) / 2)


def test_certain_probabilities_have_finite_scores() -> None:
    labels, scores = np.array([0, 1, 1]), np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert value("log_loss", labels, scores) == pytest.approx(log_loss(labels, scores))
    assert value("ece", labels, scores) == pytest.approx(1 / 3)
    assert value("ece", labels[:2], scores[:2]) == value("brier", labels[:2], scores[:2]) == 0


def test_a_split_of_one_class_has_a_value() -> None:
    labels, scores = np.array([1, 1]), np.array([[0.3, 0.7], [0.6, 0.4]])
    assert value("roc_auc", labels, scores) == 0.5
    assert value("average_precision", labels, scores) == 1.0
    assert value("average_precision", 0 * labels, scores) == 0.0


@pytest.mark.parametrize("name", SCORED)
def test_every_metric_tells_a_good_row_from_a_bad_one(name: str) -> None:
    metric, draw = METRICS.get(name), np.random.default_rng(3)
    labels = draw.integers(8, size=300)
    made = []
    for skill in (4.0, 0.0):
        logits = draw.normal(size=(300, 8)) + skill * np.eye(8)[labels]
        logits *= 1.0 if skill else 4.0  # the bad row is sure of itself
        scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        made.append(of(labels, scores))
    good, bad = made
    found = metric.difference([good], [bad])
    assert found.p < 0.001 and metric.direction.rank(found.points) > 0
    assert found.points == pytest.approx(100 * (metric.value(good) - metric.value(bad)))
    low, high = metric.interval(good)
    # A bootstrap of the calibration error lies above its value, which is biased upwards.
    assert low <= metric.value(good) <= high or name == "ece"
    same = metric.difference([good], [good])
    assert (same.points, same.p) == (0, 1)


def test_seeds_that_agree_on_labels_differ_by_their_probabilities() -> None:
    labels, scores = drawn(0, 4)
    sharper = scores**2 / (scores**2).sum(1, keepdims=True)
    one, other = of(labels, scores), of(labels, sharper)
    assert one.predicted == other.predicted and one != other and hash(one) != hash(other)
    assert METRICS.get("log_loss").difference([one], [other]).points != 0
    assert METRICS.get("accuracy").difference([one], [other]).points == 0


def test_a_share_of_first_classes_has_wilsons_interval_and_mcnemars_test() -> None:
    labels, scores = drawn(1, 6)
    row, name = of(labels, scores), "top3_accuracy"
    found = score(row, name)
    assert (found.low, found.high) == proportion_interval(round(60 * found.value), 60)
    metric, other = METRICS.get(name), of(labels, scores[:, ::-1])
    assert isinstance(metric, MeanMetric)
    p = mcnemar(row, other, each=metric.each)
    assert p != mcnemar(row, other)
    assert 0.05 > metric.difference([row], [other]).p >= p
    assert metric.difference([row], [row]).p == 1


@pytest.mark.parametrize("name", SCORED)
def test_predictions_without_scores_are_refused_in_one_line(name: str) -> None:
    old = Predictions(labels=(0, 1), predicted=(0, 1))
    for use in (
        METRICS.get(name).value,
        METRICS.get(name).interval,
        lambda p: METRICS.get(name).evidence([p]),
    ):
        with pytest.raises(InvalidConfig, match="hold no scores.*Run the cells again") as error:
            use(old)
        assert len(str(error.value).splitlines()) == 1


def test_a_mean_says_what_each_example_adds() -> None:
    predictions = of(*drawn(2, 6))
    for name in SCORED:
        metric = METRICS.get(name)
        if isinstance(metric, MeanMetric):
            assert metric.each(predictions).shape == (60,)
            assert metric.each(predictions).mean() == metric.value(predictions)


# ------------------------------------------------------------------------------------ on disk


@given(st.integers(1, 5), st.data())
def test_scores_come_back_bit_for_bit(classes: int, data: st.DataObject) -> None:
    numbers = st.floats(allow_nan=False, allow_infinity=False)
    rows = data.draw(st.lists(st.lists(numbers, min_size=classes, max_size=classes), min_size=1))
    before = Scores(rows)
    after = Scores.from_bytes(before.to_bytes())
    assert after.array.tobytes() == before.array.tobytes()
    assert after == before and hash(after) == hash(before) and len(after) == len(rows)
    assert not after.array.flags.writeable


@pytest.mark.parametrize("rows", [[0.5, 0.5], [[[1.0]]], 0.5])
def test_what_are_no_scores(rows: object) -> None:
    with pytest.raises(InvalidConfig, match="Give an array of shape"):
        Scores(rows)  # type: ignore[arg-type]


def test_scores_of_a_diverged_model_fail_the_cell_and_not_the_evaluation() -> None:
    nan = Predictions(labels=(0, 1), predicted=(0, 0), scores=Scores([[float("nan")] * 2] * 2))
    assert nan.scores == Scores([[float("nan")] * 2] * 2)
    assert METRICS.get("accuracy").value(nan) == 0.5
    with pytest.raises(InvalidConfig, match="log loss of these predictions is nan.*lower --lr"):
        score(nan, "log_loss")


def test_scores_are_of_as_many_examples_as_there_are_labels() -> None:
    with pytest.raises(InvalidConfig, match="scores of 1 examples do not fit 2 labels"):
        Predictions(labels=(0, 1), predicted=(0, 1), scores=Scores([[0.5, 0.5]]))
