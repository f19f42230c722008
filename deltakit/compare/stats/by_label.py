"""Metrics of labels and predictions: accuracy, F1, correlations, errors, perplexity."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats import significance as stats
from deltakit.compare.stats.metric import (
    Direction,
    MeanMetric,
    ProportionMetric,
    RatioMetric,
    Unit,
    as_array,
    register_metric,
)

if TYPE_CHECKING:
    from deltakit.compare.stats.metric import Array
    from deltakit.compare.stats.significance import Counts

for _name in ("accuracy", "exact_match"):
    register_metric(_name, ProportionMetric)(stats.correct)


@register_metric(
    "mse", MeanMetric, title="mean squared error", unit=Unit.PLAIN, direction=Direction.LOWER
)
def _squared(predictions: Predictions) -> Array:
    return (as_array(predictions.labels) - as_array(predictions.predicted)) ** 2


# --------------------------------------------------------------------------------- F1 from counts


def _safe_ratio(part: Array, whole: Array) -> Array:
    """The quotient; zero of zero is zero."""
    import numpy as np

    return part / np.maximum(whole, 1)


def _f1(sums: Array) -> Array:
    """F1 from two sums: twice the hits; the true ones plus the predicted ones."""
    return _safe_ratio(sums[..., 0], sums[..., 1])


def _f1_of_classes(sums: Array) -> Array:
    """The mean F1 of the classes that are true or predicted somewhere."""
    parts, wholes = _halves(sums)
    return _safe_ratio(_safe_ratio(parts, wholes).sum(-1), (wholes > 0).sum(-1))


def _f1_of_labels(sums: Array) -> Array:
    """The mean F1 of all labels."""
    return _safe_ratio(*_halves(sums)).mean(-1)


def _macro_f1(sums: Array) -> Array:
    """The mean F1 of classes, or of labels; the last sum is the number of examples with several."""
    import numpy as np

    several = sums[..., -1] > 0
    return np.where(several, _f1_of_labels(sums[..., :-1]), _f1_of_classes(sums[..., :-1]))


def _halves(sums: Array) -> tuple[Array, Array]:
    middle = sums.shape[-1] // 2
    return sums[..., :middle], sums[..., middle:]


@register_metric("f1", RatioMetric, title="F1 of the second class", ratio=_f1)
def _second_class(predictions: Predictions) -> Counts:
    hits, met = _hits_and_met(predictions)
    return _columns(hits[:, [1]], met[:, [1]])


@register_metric("f1_macro", RatioMetric, title="macro F1", ratio=_macro_f1)
def _each_class(predictions: Predictions) -> Counts:
    import numpy as np

    hits, met = _hits_and_met(predictions)
    several = isinstance(predictions.labels[0], tuple)
    return _columns(hits, met, np.full((len(predictions.labels), 1), float(several)))


@register_metric("f1_micro", RatioMetric, title="micro F1", ratio=_f1)
def _all_classes(predictions: Predictions) -> Counts:
    hits, met = _hits_and_met(predictions)
    return _columns(hits.sum(axis=1)[:, None], met.sum(axis=1)[:, None])


def _columns(*parts: Counts) -> Counts:
    from scipy.sparse import csr_array, hstack

    return hstack([csr_array(part) for part in parts], format="csr")


def _hits_and_met(predictions: Predictions) -> tuple[Counts, Counts]:
    """For each example and class: twice whether it is hit; whether it is true, plus predicted."""
    true, predicted = _flags(predictions)
    return 2 * true * predicted, true + predicted


def _flags(predictions: Predictions) -> tuple[Counts, Counts]:
    """Labels and predictions as zeros and ones for each class, at least two of them."""
    from scipy.sparse import csr_array

    labels, predicted = as_array(predictions.labels), as_array(predictions.predicted)
    if labels.ndim > 1:
        return csr_array(labels.astype(float)), csr_array(predicted.astype(float))
    classes = max(2, 1 + labels.max(), 1 + predicted.max())
    return _one_hot(labels, classes), _one_hot(predicted, classes)


def _one_hot(ids: Array, classes: int) -> Counts:
    import numpy as np
    from scipy.sparse import csr_array

    shape = (len(ids), classes)
    return csr_array((np.ones(len(ids)), (np.arange(len(ids)), ids)), shape=shape)


# --------------------------------------------------------------------------------- correlations


def _matthews_of(sums: Array) -> Array:
    """Matthews' correlation of several classes (Gorodkin 2004), from counts."""
    import numpy as np

    n, hits = sums[..., 0], sums[..., 1]
    true, predicted = _halves(sums[..., 2:])
    both = n * hits - (true * predicted).sum(-1)
    spread = (n * n - (true * true).sum(-1)) * (n * n - (predicted * predicted).sum(-1))
    return np.where(spread > 0, both / np.where(spread > 0, spread, 1) ** 0.5, 0.0)


@register_metric(
    "matthews", RatioMetric, title="Matthews correlation", unit=Unit.PLAIN, ratio=_matthews_of
)
def _class_counts(predictions: Predictions) -> Counts:
    import numpy as np

    true, predicted = _flags(predictions)
    hits = (true * predicted).sum(axis=1)[:, None]
    return _columns(np.ones_like(hits), hits, true, predicted)


@register_metric("pearson", title="Pearson correlation", unit=Unit.PLAIN)
def _pearson(labels: Array, predicted: Array) -> float:
    from scipy.stats import pearsonr

    return 0.0 if _constant(labels, predicted) else float(pearsonr(labels, predicted).statistic)


@register_metric("spearman", title="Spearman correlation", unit=Unit.PLAIN)
def _spearman(labels: Array, predicted: Array) -> float:
    from scipy.stats import spearmanr

    return 0.0 if _constant(labels, predicted) else float(spearmanr(labels, predicted).statistic)


def _constant(labels: Array, predicted: Array) -> bool:
    """Whether a correlation is not defined; it counts as none."""
    import numpy as np

    return bool(np.ptp(labels) == 0 or np.ptp(predicted) == 0)


@register_metric("r2", title="R²", unit=Unit.PLAIN)
def _r2(labels: Array, predicted: Array) -> float:
    from sklearn.metrics import r2_score

    if len(labels) < 2:  # as r2_score has it for several labels of one value
        return float((labels == predicted).all())
    return float(r2_score(labels, predicted))


# ----------------------------------------------------------------------------------- perplexity


def _exponent(sums: Array) -> Array:
    import numpy as np

    with np.errstate(over="ignore"):
        return np.exp(sums[..., 1] / sums[..., 0])


@register_metric(
    "perplexity", RatioMetric, unit=Unit.PLAIN, direction=Direction.LOWER, ratio=_exponent
)
def _tokens_and_nats(predictions: Predictions) -> Array:
    """The tokens that are predicted in a text, and their negative log-likelihood in nats."""
    import numpy as np

    columns = as_array(predictions.labels), as_array(predictions.predicted)
    return np.stack(columns, axis=1).astype(float)
