"""What a comparison can score by: each metric's value, its interval, and how people read it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self, TypeVar

from deltakit._registry import Registry
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats import significance as stats
from deltakit.compare.stats.significance import CONFIDENCE, DRAWS, Difference, Evidence

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    """Labels or predictions: shape (examples,), or (examples, labels) where there are several."""


class Direction(Enum):
    """Which scores are the better ones. The value is the arrow after a column's title."""

    HIGHER = ""
    LOWER = " ↓"

    def rank(self, score: float) -> float:
        """A number that is higher for a better score."""
        return score if self is Direction.HIGHER else -score


class Unit(Enum):
    """How people read a score. The value is the unit after a column's title."""

    PERCENT = " %"
    PLAIN = ""

    def shown(self, score: float) -> float:
        """The number that people see for a score as it is stored."""
        return 100 * score if self is Unit.PERCENT else score

    def words(self, *numbers: float) -> tuple[str, ...]:
        """Numbers that are shown, with as many places as the first one asks for."""
        size = abs(numbers[0])
        # Three digits, and no more than three places: 219, 21.3, 0.512.
        places = min(3, max(0, 2 - math.floor(math.log10(size)))) if size else 3
        if self is Unit.PERCENT:
            places = 1
        # Adding zero turns -0.0 into 0.0.
        rounded = (f"{round(number, places) + 0.0:.{places}f}" for number in numbers)
        return tuple(text.replace("-", "−") for text in rounded)


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """A score of predictions.

    Attributes:
        name: what ``--metric`` and ``results.csv`` call it.
        title: what people call it.
        unit: how they read it.
        direction: which of two scores is the better one.
        kinds: kinds of task that it fits, besides those that name it among their `metrics`.
    """

    name: str
    title: str
    unit: Unit = Unit.PERCENT
    direction: Direction = Direction.HIGHER
    kinds: tuple[str, ...] = ()

    @classmethod
    @abstractmethod
    def of(cls, function: Callable[..., Any], **fields: Any) -> Self:
        """The metric that `function` computes; `fields` are its other attributes."""

    @abstractmethod
    def value(self, predictions: Predictions) -> float:
        """The score: a fraction where people read per cent."""

    @abstractmethod
    def interval(self, predictions: Predictions) -> tuple[float, float]:
        """The 95 % interval that the number of test examples allows."""

    @abstractmethod
    def evidence(self, seeds: Sequence[Predictions]) -> Evidence:
        """What the seeds of a row say, from predictions on one split."""

    def difference(self, first: Sequence[Predictions], second: Sequence[Predictions]) -> Difference:
        """The difference of two rows' scores, paired by test example and by seed.

        Raises:
            InvalidConfig: a row has no predictions, or they were made on different test splits.
        """
        stats.check_same_split((*first, *second))
        return stats.difference(_evidence(self, tuple(first)), _evidence(self, tuple(second)))

    def format(self, score: float) -> str:
        """A score in words, as in ``81.3 %`` or ``21.4 perplexity``."""
        (number,) = self.unit.words(self.unit.shown(score))
        return number + (self.unit.value or f" {self.title}")


@dataclass(frozen=True, kw_only=True)
class MeanMetric(Metric):
    """A mean over examples. `each` gives each example's value, shape (examples,)."""

    each: Callable[[Predictions], Array]

    @classmethod
    def of(cls, function: Callable[..., Any], **fields: Any) -> Self:
        return cls(each=function, **fields)

    def value(self, predictions: Predictions) -> float:
        return float(self.each(predictions).mean())

    def interval(self, predictions: Predictions) -> tuple[float, float]:
        # Student's interval is the same for any mean.
        mean, half = stats.across_seeds(self.each(predictions).tolist())
        return mean - (half or 0.0), mean + (half or 0.0)

    def evidence(self, seeds: Sequence[Predictions]) -> Evidence:
        return stats.evidence_from_examples([self.each(predictions) for predictions in seeds])


@dataclass(frozen=True, kw_only=True)
class ProportionMetric(MeanMetric):
    """A share of examples that are right."""

    each: Callable[[Predictions], Array] = stats.correct

    def interval(self, predictions: Predictions) -> tuple[float, float]:
        right = self.each(predictions)
        return stats.proportion_interval(int(right.sum()), len(right))

    def difference(self, first: Sequence[Predictions], second: Sequence[Predictions]) -> Difference:
        return stats.paired_difference(first, second)  # McNemar's test, where it applies


@dataclass(frozen=True, kw_only=True)
class CorpusMetric(Metric):
    """A score of all examples together, with an interval from a bootstrap over them.

    `compute` takes the labels and the predictions, each as an array with one entry an example.
    """

    compute: Callable[[Array, Array], float]

    @classmethod
    def of(cls, function: Callable[..., Any], **fields: Any) -> Self:
        return cls(compute=function, **fields)

    def value(self, predictions: Predictions) -> float:
        return float(self.compute(*_arrays(predictions)))

    def interval(self, predictions: Predictions) -> tuple[float, float]:
        import numpy as np

        labels, predicted = _arrays(predictions)
        generator = np.random.default_rng(0)  # the same draws every time
        draws = (generator.integers(len(labels), size=len(labels)) for _ in range(DRAWS))
        scores = [self.compute(labels[draw], predicted[draw]) for draw in draws]
        low, high = np.quantile(scores, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(low), float(high)

    def evidence(self, seeds: Sequence[Predictions]) -> Evidence:
        labels, _ = _arrays(seeds[0])
        return stats.evidence_from_metric(
            self.compute, labels, [_arrays(each)[1] for each in seeds]
        )


METRICS: Registry[Metric] = Registry("metric", group="metrics")

F = TypeVar("F", bound=Callable[..., Any])


def register_metric(
    name: str, form: type[Metric] = CorpusMetric, *, title: str | None = None, **fields: Any
) -> Callable[[F], F]:
    """Decorator of the function that a metric computes: makes the metric known by `name`.

    Args:
        name: what ``--metric`` takes.
        form: what the function gives: by default a score of all labels and predictions.
        title: what people call the metric; by default the name.
        fields: the other attributes of `form`, such as `unit`, `direction` and `kinds`.

    Raises:
        NameInUse: another metric has the name.
    """

    def decorate(function: F) -> F:
        shown = title or name.replace("_", " ")
        METRICS.add(name, form.of(function, name=name, title=shown, **fields))
        return function

    return decorate


@lru_cache(maxsize=1024)
def _evidence(metric: Metric, seeds: tuple[Predictions, ...]) -> Evidence:
    """As `Metric.evidence`: each row of a table is compared with several others."""
    return metric.evidence(seeds)


def _arrays(predictions: Predictions) -> tuple[Array, Array]:
    import numpy as np

    return np.asarray(predictions.labels), np.asarray(predictions.predicted)


# ------------------------------------------------------------------------------- what they compute

for _name in ("accuracy", "exact_match"):
    register_metric(_name, ProportionMetric)(stats.correct)


@register_metric(
    "mse",
    MeanMetric,
    title="mean squared error",
    unit=Unit.PLAIN,
    direction=Direction.LOWER,
)
def _squared(predictions: Predictions) -> Array:
    labels, predicted = _arrays(predictions)
    return (labels - predicted) ** 2


# F1 and Matthews are scikit-learn's, from counts: a bootstrap has no time for its checks.


@register_metric("f1", title="F1 of the second class")
def _f1_second(labels: Array, predicted: Array) -> float:
    right, met = _counts(labels, predicted)
    return _ratio(2 * right[1:2], met[1:2])


@register_metric("f1_macro", title="macro F1")
def _f1_macro(labels: Array, predicted: Array) -> float:
    import numpy as np

    right, met = _counts(labels, predicted)
    shown = met > 0 if labels.ndim == 1 else np.full(met.shape, True)
    return float(np.mean(2 * right[shown] / np.maximum(met[shown], 1)))


@register_metric("f1_micro", title="micro F1")
def _f1_micro(labels: Array, predicted: Array) -> float:
    right, met = _counts(labels, predicted)
    return _ratio(2 * right, met)


def _counts(labels: Array, predicted: Array) -> tuple[Array, Array]:
    """Of each class or label, how often it was right; and was true, plus was predicted."""
    import numpy as np

    if labels.ndim > 1:
        return (labels * predicted).sum(axis=0), labels.sum(axis=0) + predicted.sum(axis=0)
    size = 1 + max(labels.max(), predicted.max())
    right = np.bincount(labels[labels == predicted], minlength=size)
    return right, np.bincount(labels, minlength=size) + np.bincount(predicted, minlength=size)


def _ratio(part: Array, whole: Array) -> float:
    """Zero of zero is zero."""
    return float(part.sum() / max(whole.sum(), 1))


@register_metric("matthews", title="Matthews correlation", unit=Unit.PLAIN)
def _matthews(labels: Array, predicted: Array) -> float:
    import numpy as np

    n, size = len(labels), 1 + max(labels.max(), predicted.max())
    true, said = (np.bincount(each, minlength=size).astype(float) for each in (labels, predicted))
    both = n * float((labels == predicted).sum()) - true @ said
    spread = (n * n - true @ true) * (n * n - said @ said)
    return float(both / spread**0.5) if spread else 0.0


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

    return float(r2_score(labels, predicted))


@register_metric("perplexity", unit=Unit.PLAIN, direction=Direction.LOWER)
def _perplexity(tokens: Array, surprise: Array) -> float:
    """`tokens` predicted in each text, and the sum of their negative log-likelihoods in nats."""
    return math.exp(surprise.sum() / tokens.sum())
