"""Metrics: their values, their intervals and how people read them. Each is registered by a name."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from functools import lru_cache
from importlib.util import find_spec
from types import FunctionType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from deltakit._registry import Registry
from deltakit.compare.records.result import Predictions, Value
from deltakit.compare.stats import significance as stats
from deltakit.compare.stats.significance import Difference, Evidence
from deltakit.errors import InvalidConfig, MissingExtra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deltakit.compare.stats.significance import Counts

    Array = NDArray[Any]
    """Numbers with one entry an example; several labels or classes are the second dimension."""


class Direction(Enum):
    """The direction of better scores. The value is the arrow after a column's title."""

    HIGHER = ""
    LOWER = " ↓"

    def rank(self, score: float) -> float:
        """A number that is higher for a better score."""
        return score if self is Direction.HIGHER else -score


class Unit(Enum):
    """The unit in which people read a score. The value follows a column's title."""

    PERCENT = " %"
    PLAIN = ""

    def shown(self, score: float) -> float:
        """The number that people see for a score as it is stored."""
        return 100 * score if self is Unit.PERCENT else score

    def words(self, *numbers: float) -> tuple[str, ...]:
        """Numbers as text, with as many places as the first one needs."""
        size = abs(numbers[0])
        # Three digits, and no more than three places: 219, 21.3, 0.512.
        places = min(3, max(0, 2 - math.floor(math.log10(size)))) if size else 3
        if self is Unit.PERCENT:
            places = 1
        # Adding zero turns -0.0 into 0.0.
        rounded = (f"{round(number, places) + 0.0:.{places}f}" for number in numbers)
        return tuple(text.replace("-", "−") for text in rounded)

    def distance(self, points: float) -> str:
        """A difference of scores as text, in the score's own unit.

        Args:
            points: the difference in hundredths of the score as it is stored.
        """
        return self.words(self.shown(points / 100))[0]

    def change(self, points: float) -> str:
        """As `distance`, with a plus before what is above zero."""
        number = self.distance(points)
        return number if number.startswith("−") or not number.strip("0.") else f"+{number}"


class Takes(Enum):
    """The input of a metric, in addition to the labels."""

    PREDICTED = "predicted"
    """The predicted labels, numbers or texts."""
    SCORES = "scores"
    """The probabilities of the classes or labels, which not every kind of task has."""

    def of(self, predictions: Predictions) -> Array:
        """The predictions in this form, with one entry an example.

        Raises:
            InvalidConfig: the predictions hold no probabilities.
        """
        if self is Takes.PREDICTED:
            return as_array(predictions.predicted)
        return probabilities(predictions)


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """A score of predictions.

    Attributes:
        name: its name for ``--metric`` and in ``results.csv``.
        title: its name in tables.
        unit: the unit in which people read it.
        direction: the direction of better scores.
        takes: its input, in addition to the labels.
        kinds: kinds of task that it fits, in addition to those that have it in `metrics`.
        package: the module that computes it, where an extra installs that; "" otherwise.
        extra: the extra.
    """

    name: str
    title: str
    unit: Unit = Unit.PERCENT
    direction: Direction = Direction.HIGHER
    takes: Takes = Takes.PREDICTED
    kinds: tuple[str, ...] = ()
    package: str = ""
    extra: str = ""

    def check_installed(self) -> None:
        """Raises `MissingExtra` where the package that computes it is missing."""
        if self.package and find_spec(self.package) is None:
            raise MissingExtra(
                f"the metric {self.name!r} needs the package {self.package!r}. Install it: "
                f'pip install -e ".[{self.extra}]", or choose another --metric.'
            )

    @classmethod
    @abstractmethod
    def of(cls, function: Callable[..., Any], **fields: Any) -> Self:
        """The metric that `function` computes; `fields` are its other attributes."""

    @abstractmethod
    def value(self, predictions: Predictions) -> float:
        """The score: a fraction where people read per cent.

        Raises:
            InvalidConfig: it takes probabilities, and the predictions hold none.
        """

    @abstractmethod
    def interval(self, predictions: Predictions) -> tuple[float, float]:
        """The 95 % interval that the number of test examples allows."""

    @abstractmethod
    def evidence(self, seeds: Sequence[Predictions]) -> Evidence:
        """The scores of a row's seeds and their errors, from predictions on one split."""

    def difference(
        self, first: Sequence[Predictions], second: Sequence[Predictions], *, paired: bool = True
    ) -> Difference:
        """The difference of two rows' scores, paired by test example and by seed.

        Args:
            first: one entry for each seed of the first row.
            second: one for each seed of the second row.
            paired: whether both rows have the same seeds, in the same order.

        Raises:
            InvalidConfig: a row has no predictions, or they were made on different test splits.
        """
        stats.check_same_split((*first, *second))
        rows = (_evidence(self, tuple(row)) for row in (first, second))
        return stats.difference(*rows, paired=paired)

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
    """A share of examples: `each` gives 1.0 or 0.0 for each."""

    each: Callable[[Predictions], Array] = stats.correct

    def interval(self, predictions: Predictions) -> tuple[float, float]:
        hits = self.each(predictions)
        return stats.proportion_interval(int(hits.sum()), len(hits))

    def difference(
        self, first: Sequence[Predictions], second: Sequence[Predictions], *, paired: bool = True
    ) -> Difference:
        # McNemar's test, where it applies.
        return stats.paired_difference(first, second, each=self.each, paired=paired)


@dataclass(frozen=True, kw_only=True)
class RatioMetric(Metric):
    """A function of sums over the examples, such as F1 or perplexity.

    Its bootstrap is one product of matrices, where a `CorpusMetric` is computed on each resample.

    Attributes:
        counts: gives what each example adds to the sums, an array of shape (examples, sums). It
            may be one of `scipy.sparse`, for instance where most sums are of one class each.
        ratio: gives the score of sums, from shape (..., sums) to shape (...).
    """

    counts: Callable[[Predictions], Counts]
    ratio: Callable[[Array], Array]

    @classmethod
    def of(cls, function: Callable[..., Any], **fields: Any) -> Self:
        return cls(counts=function, **fields)

    def value(self, predictions: Predictions) -> float:
        return float(self.ratio(self.counts(predictions).sum(axis=0)))

    def interval(self, predictions: Predictions) -> tuple[float, float]:
        (drawn,) = stats.redrawn_ratios([self.counts(predictions)], self.ratio)
        return stats.percentiles(drawn)

    def evidence(self, seeds: Sequence[Predictions]) -> Evidence:
        return stats.evidence_from_counts([self.counts(each) for each in seeds], self.ratio)


@dataclass(frozen=True, kw_only=True)
class CorpusMetric(Metric):
    """A score of all examples together, with an interval from a bootstrap over them.

    `compute` is given the labels and what the metric `takes`, each with one entry an example.
    """

    compute: Callable[[Array, Array], float]

    @classmethod
    def of(cls, function: Callable[..., Any], **fields: Any) -> Self:
        return cls(compute=function, **fields)

    def value(self, predictions: Predictions) -> float:
        return float(self.compute(as_array(predictions.labels), self.takes.of(predictions)))

    def interval(self, predictions: Predictions) -> tuple[float, float]:
        labels, made = as_array(predictions.labels), self.takes.of(predictions)
        return stats.percentiles(stats.redrawn_scores(self.compute, labels, made))

    def evidence(self, seeds: Sequence[Predictions]) -> Evidence:
        labels, made = as_array(seeds[0].labels), [self.takes.of(each) for each in seeds]
        return stats.evidence_from_metric(self.compute, labels, made)


def _function_of(metric: Metric) -> object:
    """The function that a metric was made of by `register_metric`."""
    values = (getattr(metric, each.name) for each in fields(metric))
    return next((value for value in values if isinstance(value, FunctionType)), metric)


METRICS: Registry[Metric] = Registry(
    "metric",
    group="metrics",
    shipped=("deltakit.compare.stats.metrics",),
    source=_function_of,
)

F = TypeVar("F", bound=Callable[..., Any])


def register_metric(
    name: str, form: type[Metric] = CorpusMetric, *, title: str | None = None, **fields: Any
) -> Callable[[F], F]:
    """Decorator of the function that a metric computes: makes the metric known by `name`.

    Args:
        name: what ``--metric`` takes.
        form: what the function gives: by default a score of all labels and predictions.
        title: what people call the metric; by default the name.
        fields: the other attributes of `form`, such as `unit`, `direction`, `takes` and `kinds`.

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


def as_array(values: Sequence[Value]) -> Array:
    """Labels or predictions as an array of shape (examples,), or (examples, labels).

    Tuples of different lengths stay tuples, in an array of shape (examples,).
    """
    import numpy as np

    if len({len(value) if isinstance(value, tuple) else -1 for value in values}) < 2:
        return np.asarray(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def probabilities(predictions: Predictions) -> Array:
    """The probabilities of the classes or labels, shape (examples, classes).

    Raises:
        InvalidConfig: the predictions hold none.
    """
    if predictions.scores is None:
        raise InvalidConfig(
            "these predictions hold no scores (probabilities of the classes), which the metric "
            "takes: an earlier version of deltakit wrote them, or the kind of task has none. Run "
            "the cells again in a new folder, or choose a metric of predicted labels."
        )
    return predictions.scores.array
