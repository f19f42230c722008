"""Metrics: equal to the libraries', with intervals, in the order of what is better, as text."""

import json
import math
import operator
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    mean_squared_error,
    r2_score,
)

from deltakit.compare.plan.lr_search import choose
from deltakit.compare.records.result import Predictions
from deltakit.compare.records.trial import Trial
from deltakit.compare.run.predict import score
from deltakit.compare.stats.metrics import (
    METRICS,
    CorpusMetric,
    Direction,
    MeanMetric,
    RatioMetric,
    Takes,
    Unit,
    register_metric,
)
from deltakit.compare.stats.significance import proportion_interval
from deltakit.errors import InvalidConfig


def of(labels: object, predicted: object) -> Predictions:
    return Predictions(
        labels=tuple(map(_plain, labels)),  # type: ignore[arg-type, call-overload]
        predicted=tuple(map(_plain, predicted)),  # type: ignore[arg-type, call-overload]
    )


def _plain(value: object) -> object:
    return tuple(value.tolist()) if isinstance(value, np.ndarray) else value.item()  # type: ignore[attr-defined]


def value(metric: str, labels: object, predicted: object) -> float:
    return METRICS.get(metric).value(of(labels, predicted))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("classes", [2, 5])
def test_classes_are_scored_as_scikit_learn_does(seed: int, classes: int) -> None:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 40))
    a, b = draw.integers(classes, size=n), draw.integers(classes, size=n)
    assert value("accuracy", a, b) == pytest.approx(accuracy_score(a, b))
    macro = f1_score(a, b, average="macro", zero_division=0)
    assert value("f1_macro", a, b) == pytest.approx(macro)
    if len({*a, *b}) > 1:  # scikit-learn warns of a single one
        assert value("matthews", a, b) == pytest.approx(matthews_corrcoef(a, b))
    if classes == 2:
        assert value("f1", a, b) == pytest.approx(f1_score(a, b, zero_division=0))


@pytest.mark.parametrize("seed", range(20))
def test_several_labels_are_scored_as_scikit_learn_does(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = (draw.random((2, 12, 4)) < draw.random()).astype(int)
    for average in ("micro", "macro"):
        expected = f1_score(a, b, average=average, zero_division=0)
        assert value(f"f1_{average}", a, b) == pytest.approx(expected)
    assert value("exact_match", a, b) == pytest.approx(accuracy_score(a, b))


@pytest.mark.parametrize("seed", range(5))
def test_numbers_are_scored_as_the_libraries_do(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.random((2, 30))
    assert value("pearson", a, b) == pytest.approx(pearsonr(a, b).statistic)
    assert value("spearman", a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert value("r2", a, b) == pytest.approx(r2_score(a, b))
    assert value("mse", a, b) == pytest.approx(mean_squared_error(a, b))


@pytest.mark.parametrize("metric", ["pearson", "spearman", "matthews", "f1", "f1_macro"])
def test_predictions_that_are_all_the_same_have_a_value(metric: str) -> None:
    labels = np.array([0, 1, 1, 0])
    found = METRICS.get(metric).value(of(labels, np.zeros(4, dtype=int)))
    assert found == (pytest.approx(1 / 3) if metric == "f1_macro" else 0)
    assert value("matthews", labels * 0, labels * 0) == 0


def test_perplexity_is_of_the_tokens_and_not_of_the_texts() -> None:
    found = value("perplexity", np.array([1, 3]), np.array([math.log(8), math.log(2)]))
    assert found == pytest.approx(2.0)  # four tokens, four bits


def test_answers_match_exactly_or_not() -> None:
    predictions = Predictions(labels=("yes", "no", "No"), predicted=("yes", "no.", "no"))
    assert METRICS.get("exact_match").value(predictions) == pytest.approx(1 / 3)


# ---------------------------------------------------------------------------------- intervals


def test_a_share_has_wilsons_interval() -> None:
    for metric in ("accuracy", "exact_match"):
        found = score(Predictions(labels=(1,) * 10, predicted=(1,) * 8 + (0,) * 2), metric)
        assert (found.low, found.high) == proportion_interval(8, 10)
    several = score(
        Predictions(labels=((1, 0),) * 4, predicted=((1, 0), (1, 1)) * 2), "exact_match"
    )
    assert (several.value, several.low, several.high) == (0.5, *proportion_interval(2, 4))


def test_another_mean_has_students_interval() -> None:
    found = score(Predictions(labels=(0.0,) * 4, predicted=(1.0, 1.0, 2.0, 2.0)), "mse")
    assert found.value == 2.5
    # Squares 1, 1, 4, 4: their standard error is √3/2, Student's quantile for 3 degrees 3.1824.
    half = pytest.approx(3.1824 * math.sqrt(3) / 2, rel=1e-4)
    assert (found.high - 2.5, 2.5 - found.low) == (half, half)


def test_what_is_no_mean_has_a_bootstraps_interval_that_covers_it() -> None:
    draw = np.random.default_rng(0)
    truth = draw.integers(2, size=100_000)
    right = draw.random(truth.size) < 0.8
    everything = of(truth, np.where(right, truth, 1 - truth))
    whole = METRICS.get("matthews").value(everything)
    covered = 0
    for first in range(0, 40 * 250, 250):
        part = Predictions(
            labels=everything.labels[first : first + 250],
            predicted=everything.predicted[first : first + 250],
        )
        found = score(part, "matthews")
        assert found.low < found.value < found.high
        covered += found.low <= whole <= found.high
    assert 34 <= covered <= 40
    assert score(part, "matthews") == found  # the same draws every time


# ------------------------------------------------------------------------- ratios of sums


def rows_of(name: str) -> list[Predictions]:
    """Four rows of falling quality, the same ones every time."""
    draw, n = np.random.default_rng(7), 120
    if name == "perplexity":
        truth = draw.integers(1, 40, size=n)
        made = [truth * draw.normal(2.0, 0.3, n) for _ in range(4)]
    elif name in ("pearson", "spearman", "r2", "mse"):
        truth = draw.normal(size=n)
        made = [truth + draw.normal(size=n) for _ in range(4)]
    else:
        several = name in ("f1_micro", "exact_match")
        classes, shape = (2 if name == "f1" or several else 4), (n, 3) if several else (n,)
        truth = draw.integers(classes, size=shape)
        made = [
            np.where(draw.random(shape) < p, truth, draw.integers(classes, size=shape))
            for p in (0.7, 0.6, 0.5, 0.4)
        ]
    return [of(truth, each) for each in made]


BEFORE = json.loads(Path(__file__).with_name("bootstrap_0_1.json").read_text())


@pytest.mark.parametrize("name", BEFORE)
def test_scores_intervals_and_tests_are_those_of_deltakit_0_1(name: str) -> None:
    # The numbers were made when every metric was computed anew on each resample.
    of_labels = name.endswith(" of labels")
    metric = METRICS.get(name.removesuffix(" of labels"))
    rows = rows_of("f1_micro" if of_labels else name)
    evidence = metric.evidence(rows[:2])
    weighted = evidence.moves @ np.arange(1, evidence.moves.shape[1] + 1)
    one, two = metric.difference(rows[:1], rows[1:2]), metric.difference(rows[:2], rows[2:])
    differences = [0] * 4 if of_labels else [one.low, one.p, two.high, two.p]
    found = [metric.value(rows[0]), *metric.interval(rows[0]), *weighted, *differences]
    assert found == pytest.approx(BEFORE[name], rel=1e-12, abs=1e-12)


def _words_hit(predictions: Predictions) -> np.ndarray:
    """For tags of different lengths: how many are right, and how many there are."""
    pairs = zip(predictions.labels, predictions.predicted, strict=True)
    counted = [(sum(map(operator.eq, a, b)), len(a)) for a, b in pairs]  # type: ignore[arg-type]
    return np.array(counted, dtype=float)


def test_a_ratio_of_counts_over_sequences_of_different_lengths() -> None:
    metric = RatioMetric(
        name="hits", title="hits", counts=_words_hit, ratio=lambda sums: sums[..., 0] / sums[..., 1]
    )
    tags = (("B", "I", "O"), ("O",), ("O", "B"))
    row = Predictions(labels=tags * 20, predicted=(("B", "O", "O"), ("O",), ("B", "B")) * 20)
    assert metric.value(row) == pytest.approx(4 / 6)
    low, high = metric.interval(row)
    assert 0.5 < low < 4 / 6 < high < 0.8
    perfect = Predictions(labels=tags * 20, predicted=tags * 20)
    assert metric.difference([perfect], [row]).p < 1e-3
    assert METRICS.get("exact_match").value(row) == pytest.approx(1 / 3)


def test_a_ratio_is_not_computed_once_a_resample() -> None:
    calls: list[int] = []

    def ratio(sums: np.ndarray) -> np.ndarray:
        calls.append(1)
        return sums[..., 0] / sums[..., 1]

    metric = RatioMetric(name="hits", title="hits", counts=_words_hit, ratio=ratio)
    row = Predictions(labels=(("B",), ("O",)) * 9, predicted=(("B",), ("B",)) * 9)
    metric.interval(row)
    assert len(calls) <= 20


def test_a_ratio_of_ones_own_is_registered() -> None:
    @register_metric("tag_hits", RatioMetric, ratio=lambda sums: sums[..., 0] / sums[..., 1])
    def counts(predictions: Predictions) -> np.ndarray:
        return _words_hit(predictions)

    try:
        row = Predictions(labels=(("B", "O"),), predicted=(("B", "B"),))
        assert METRICS.get("tag_hits").value(row) == 0.5
        assert METRICS.get("tag_hits").title == "tag hits"
    finally:
        METRICS.remove("tag_hits")


# -------------------------------------------------------------------------------- differences


PREDICTED = [name for name, metric in METRICS.items() if metric.takes is Takes.PREDICTED]


def good_and_bad(name: str) -> tuple[Predictions, Predictions]:
    """Two rows of 200 examples, of which the second is far worse."""
    draw = np.random.default_rng(1)
    if name in WRITTEN:
        return tuple(WRITTEN[name](draw.random(200) < share) for share in (0.95, 0.5))  # type: ignore[return-value]
    if name == "perplexity":
        truth = draw.integers(5, 50, size=200)
        good, bad = truth * draw.normal(1.0, 0.1, 200), truth * draw.normal(3.0, 0.1, 200)
    elif name in ("pearson", "spearman", "r2", "mse"):
        truth = draw.normal(size=200)
        good, bad = truth + draw.normal(size=200) / 4, truth + 4 * draw.normal(size=200)
    else:
        shape = (200, 3) if name in ("f1_micro", "exact_match") else (200,)
        truth = draw.integers(2, size=shape)
        good, bad = (np.where(draw.random(shape) < p, truth, 1 - truth) for p in (0.95, 0.5))
    return of(truth, good), of(truth, bad)


def _written(label: object, right: object, wrong: object) -> Callable[[np.ndarray], Predictions]:
    """Rows of examples with one label, which are right or wrong."""
    return lambda hits: Predictions(
        labels=(label,) * len(hits),  # type: ignore[arg-type]
        predicted=tuple(right if hit else wrong for hit in hits),  # type: ignore[misc]
        classes=("B-PER", "I-PER", "O"),
    )


TAGS, TEXT = (0, 1, 2), "the cat sat on the red mat"
WRITTEN = {
    "answer_f1": _written(("red mat", "mat"), "a red mat", "the cat"),
    "answer_exact": _written(("red mat", "mat"), "a mat", "the cat"),
    "answer_match": _written("yes", (3.0, 2, "yes"), (3.0, 2, "no")),
    "answer_perplexity": _written("yes", (3.0, 2, "yes"), (9.0, 2, "no")),
    "span_f1": _written(TAGS, TAGS, (0, 2, 2)),
    "word_accuracy": _written(TAGS, TAGS, (2, 2, 2)),
    **{
        name: _written(TEXT, TEXT, "a dog")
        for name in ("rouge1", "rouge2", "rougeL", "rougeLsum", "bleu", "chrf")
    },
}
"""What is predicted of a text, by the metrics that take no numbers."""


@pytest.mark.parametrize("name", PREDICTED)
def test_every_metric_tells_a_good_row_from_a_bad_one(name: str) -> None:
    metric, rows = METRICS.get(name), good_and_bad(name)
    found = metric.difference(rows[:1], rows[1:])
    assert found.p < 0.001
    assert found.points == pytest.approx(100 * (metric.value(rows[0]) - metric.value(rows[1])))
    assert metric.direction.rank(found.points) > 0
    assert found.low <= found.points <= found.high
    same = metric.difference(rows[:1], rows[:1])
    assert (same.points, same.p) == (0, 1)


def test_rows_of_different_splits_are_not_compared() -> None:
    one, other = of(np.arange(4.0), np.ones(4)), of(np.arange(1.0, 5.0), np.ones(4))
    with pytest.raises(InvalidConfig, match="different splits"):
        METRICS.get("mse").difference([one], [other])


# ------------------------------------------------------------------------------ what is better


def test_lower_is_better_where_the_metric_says_so() -> None:
    lower = {name for name, metric in METRICS.items() if metric.direction is Direction.LOWER}
    assert lower == {"mse", "perplexity", "answer_perplexity", "log_loss", "brier", "ece"}
    trials = [Trial(lr=lr, score=s) for lr, s in ((1e-4, 9.0), (1e-3, 5.0), (1e-2, 7.0))]
    assert choose(trials).lr == 1e-4
    assert choose(trials, Direction.LOWER).lr == 1e-3
    equal = [Trial(lr=lr, score=5.0) for lr in (1e-3, 1e-4)]
    assert choose(equal, Direction.LOWER).lr == choose(equal).lr == 1e-4


@pytest.mark.parametrize(
    ("metric", "stored", "text"),
    [
        ("accuracy", 0.8125, "81.2 %"),
        ("f1_micro", 1.0, "100.0 %"),
        ("perplexity", 21.44, "21.4 perplexity"),
        ("perplexity", 12623.4, "12623 perplexity"),
        ("pearson", 0.51239, "0.512 Pearson correlation"),
        ("pearson", -0.0001, "0.000 Pearson correlation"),
        ("r2", -1.25, "−1.25 R²"),
        ("mse", 0.0, "0.000 mean squared error"),
    ],
)
def test_a_score_in_words(metric: str, stored: float, text: str) -> None:
    assert METRICS.get(metric).format(stored) == text


def test_numbers_beside_each_other_have_as_many_places() -> None:
    assert Unit.PLAIN.words(21.44, 0.0312, 123.0) == ("21.4", "0.0", "123.0")
    assert Unit.PERCENT.words(81.25, 0.5) == ("81.2", "0.5")


def test_a_mean_says_what_each_example_adds() -> None:
    for name in PREDICTED:
        metric, (_, predictions) = METRICS.get(name), good_and_bad(name)
        assert isinstance(metric, MeanMetric | RatioMetric | CorpusMetric)
        if isinstance(metric, MeanMetric):
            assert metric.each(predictions).mean() == metric.value(predictions)


# ------------------------------------------------------------------------------------ on disk

VALUES = (
    st.integers(-5, 10**6),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.integers(0, 1), min_size=2, max_size=5).map(tuple),
    st.lists(st.sampled_from(["B-PER", "I-PER", "O"]), max_size=4).map(tuple),
)


@given(st.one_of(*(st.lists(st.tuples(each, each), min_size=1) for each in VALUES)))
def test_predictions_come_back_from_disk_bit_for_bit(pairs: list[tuple[object, object]]) -> None:
    labels, predicted = zip(*pairs, strict=True)
    before = Predictions(labels=labels, predicted=predicted)
    text = before.to_csv()
    after = Predictions.from_csv(text)
    assert after == before
    assert [type(each) for each in after.labels] == [type(each) for each in labels]
    assert len(text.split("\n")) == len(pairs) + 2


@pytest.mark.parametrize("name", ["pearson", "spearman", "r2", "mse"])
def test_one_example_has_a_score_of_numbers(name: str) -> None:
    metric, row = METRICS.get(name), of(np.array([1.0]), np.array([2.0]))
    assert np.isfinite([metric.value(row), *metric.interval(row)]).all()
    assert metric.difference([row], [row]).p == 1
    if name == "r2":
        assert metric.value(of(np.array([1.0]), np.array([1.0]))) == 1
