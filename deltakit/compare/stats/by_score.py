"""Metrics of probabilities: areas under curves, proper scores, calibration, the first k classes.

A label is a class, or a zero or a one for each of several labels. The probabilities have the
shape (examples, classes), or (examples, labels).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metric import (
    CorpusMetric,
    Direction,
    MeanMetric,
    ProportionMetric,
    RatioMetric,
    Takes,
    Unit,
    as_array,
    probabilities,
    register_metric,
)

if TYPE_CHECKING:
    from deltakit.compare.stats.metric import Array

BINS = 15
"""Bins of equal width of the calibration error."""


# ----------------------------------------------------------------------------- areas under curves


@register_metric(
    "roc_auc", CorpusMetric, title="area under ROC", unit=Unit.PLAIN, takes=Takes.SCORES
)
def _roc_auc(labels: Array, scores: Array) -> float:
    """The probability that an example of the class has a higher score than one of the others.

    Of several classes or labels it is the mean of each against the rest. A class that all examples
    or none of them have is left out; where that is true of every class, the area is a half.
    """
    import numpy as np
    from scipy.stats import rankdata

    true, made = _against_the_rest(labels, scores)
    inside = true.sum(axis=0)
    pairs = inside * (len(true) - inside)
    above = (rankdata(made, axis=0) * true).sum(axis=0) - inside * (inside + 1) / 2
    return float(np.mean(above[pairs > 0] / pairs[pairs > 0])) if pairs.any() else 0.5


@register_metric(
    "average_precision",
    CorpusMetric,
    title="average precision",
    unit=Unit.PLAIN,
    takes=Takes.SCORES,
)
def _average_precision(labels: Array, scores: Array) -> float:
    """The mean precision over the recalls, of several classes or labels the mean of each.

    A class that no example has is left out; where that is true of every class, it is zero.
    """
    true, made = _against_the_rest(labels, scores)
    found = [_precision(*pair) for pair in zip(true.T, made.T, strict=True) if pair[0].any()]
    return float(sum(found) / max(len(found), 1))


def _precision(true: Array, scores: Array) -> float:
    """Average precision without interpolation, of one class."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # equal scores are one threshold
    hits = np.cumsum(true[order])[last]
    precision = hits / (1 + np.flatnonzero(last))
    return float((np.diff(hits, prepend=0.0) * precision).sum() / hits[-1])


def _against_the_rest(labels: Array, scores: Array) -> tuple[Array, Array]:
    """Zeros and ones for each class, and its scores; of two classes the second alone."""
    true = _flags(labels, scores)
    if labels.ndim == 1 and scores.shape[1] == 2:
        return true[:, 1:], scores[:, 1:]
    return true, scores


def _flags(labels: Array, scores: Array) -> Array:
    """A zero or a one for each example and class."""
    import numpy as np

    return labels.astype(float) if labels.ndim > 1 else np.eye(scores.shape[1])[labels]


# --------------------------------------------------------------------------------- proper scores


@register_metric(
    "log_loss",
    MeanMetric,
    title="log loss",
    unit=Unit.PLAIN,
    direction=Direction.LOWER,
    takes=Takes.SCORES,
)
def _log_loss(predictions: Predictions) -> Array:
    """The negative log of the true class's probability in nats; of several labels their mean."""
    import numpy as np

    labels, scores = as_array(predictions.labels), probabilities(predictions)
    smallest = np.finfo(scores.dtype).eps
    sure = np.clip(scores, smallest, 1 - smallest)
    if labels.ndim > 1:
        return -np.where(labels == 1, np.log(sure), np.log1p(-sure)).mean(axis=1)
    return -np.log(sure[np.arange(len(labels)), labels])


@register_metric(
    "brier",
    MeanMetric,
    title="Brier score",
    unit=Unit.PLAIN,
    direction=Direction.LOWER,
    takes=Takes.SCORES,
)
def _brier(predictions: Predictions) -> Array:
    """The squared error of the probabilities (Brier 1950).

    It is summed over three or more classes, and is that of the second of two classes. Of several
    labels it is the mean.
    """
    labels, scores = as_array(predictions.labels), probabilities(predictions)
    true, made = _against_the_rest(labels, scores)
    squared = (made - true) ** 2
    return squared.mean(axis=1) if labels.ndim > 1 else squared.sum(axis=1)


# ----------------------------------------------------------------------------------- calibration


def _calibration_error(sums: Array) -> Array:
    """From the gap of each bin, and the number of probabilities."""
    import numpy as np

    return np.abs(sums[..., :-1]).sum(-1) / sums[..., -1]


@register_metric(
    "ece",
    RatioMetric,
    title="calibration error",
    direction=Direction.LOWER,
    takes=Takes.SCORES,
    ratio=_calibration_error,
)
def _gaps(predictions: Predictions) -> Array:
    """What an example adds to the gap of each of 15 bins (Guo et al. 2017).

    A gap is hits minus confidences. Of one class an example, the confidence is the highest
    probability; of several labels, each label's probability is one.
    """
    import numpy as np

    labels, scores = as_array(predictions.labels), probabilities(predictions)
    true = _flags(labels, scores)
    if labels.ndim == 1:
        chosen = scores.argmax(axis=1)[:, None]
        true, scores = (np.take_along_axis(each, chosen, axis=1) for each in (true, scores))
    bins = np.clip(np.ceil(scores * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = (np.eye(BINS)[bins] * (true - scores)[..., None]).sum(axis=1)
    return np.append(gaps, np.full((len(gaps), 1), float(scores.shape[1])), axis=1)


# ------------------------------------------------------------------------------ the first classes


def _among_first(predictions: Predictions, *, classes: int) -> Array:
    """Whether the true class has one of the highest probabilities.

    Of equal probabilities the later class comes first, as scikit-learn has it.
    """
    import numpy as np

    labels, scores = as_array(predictions.labels), probabilities(predictions)
    first = np.argsort(scores, axis=1, kind="stable")[:, ::-1][:, :classes]
    return (first == labels[:, None]).any(axis=1).astype(float)


@register_metric(
    "accuracy_norm", ProportionMetric, title="accuracy, for length", takes=Takes.SCORES
)
def _likeliest_for_its_length(predictions: Predictions) -> Array:
    """Whether the ending with the highest score for its length is right; of equal ones the first.

    It is the harness's ``acc_norm``: scores are log-likelihoods over numbers of characters.
    """
    chosen = probabilities(predictions).argmax(axis=1)
    return (chosen == as_array(predictions.labels)).astype(float)


for _classes in (3, 5):
    register_metric(
        f"top{_classes}_accuracy",
        ProportionMetric,
        title=f"top-{_classes} accuracy",
        takes=Takes.SCORES,
    )(partial(_among_first, classes=_classes))
