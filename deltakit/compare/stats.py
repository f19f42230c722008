"""How sure a comparison may be: intervals for scores, and tests between two rows of a table.

Everything here looks at single test examples (right or wrong), so that two rows that saw the same
test split are compared as pairs, which is far sharper than comparing two intervals by eye.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deltakit.compare.schema import Predictions
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIDENCE = 0.95
"""The confidence of every interval in a report."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much better one row is than another, on the same test examples.

    Attributes:
        points: difference of accuracy in percentage points, the first row minus the second.
        low: lower end of its 95 % interval over test examples, in points.
        high: upper end.
        p: two-sided p of "both are equally accurate".
    """

    points: float
    low: float
    high: float
    p: float


def proportion_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion.

    Args:
        correct: how many of the examples were right.
        n: how many there were.

    Returns:
        The lower and the upper end, fractions in [0, 1].

    Raises:
        InvalidConfig: there are no examples, or `correct` is not between 0 and `n`.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= correct <= n:
        raise InvalidConfig(
            f"{correct} right of {n} is not a proportion: it takes at least one example, and "
            f"between 0 and all of them right. Check that the test split is not empty."
        )
    interval = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: Predictions, second: Predictions) -> float:
    """McNemar's exact test: the two-sided p of "both are equally accurate".

    Only the examples that one row gets right and the other wrong say anything; where there is no
    such example, p is 1.

    Raises:
        InvalidConfig: the two were not made on the same test split.
    """
    from scipy.stats import binomtest

    _check_same_split((first, second))
    change = _right(first) - _right(second)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def across_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean over seeds, and the half-width of Student's 95 % interval around it.

    The half-width is None for a single value, which says nothing about other seeds.

    Raises:
        InvalidConfig: there is no value.
    """
    import numpy as np
    from scipy import stats

    if not values:
        raise InvalidConfig("no values to average over seeds. Give one for each finished seed.")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, None
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, df=len(values) - 1)
    return mean, float(quantile * stats.sem(values))


def paired_difference(first: Sequence[Predictions], second: Sequence[Predictions]) -> Difference:
    """The difference of two rows' accuracies, paired by test example.

    Of several seeds, every example counts once, with the mean of its outcomes: seeds are no new
    examples. The interval is that of the mean of paired differences (Student's t over examples).
    With one seed on both sides p is `mcnemar`'s; with more it is the paired t-test's.

    Args:
        first: one entry for each seed of the first row.
        second: one for each seed of the second row; the numbers of seeds may differ.

    Raises:
        InvalidConfig: a row has no predictions, or they were made on different test splits.
    """
    if not first or not second:
        raise InvalidConfig("a row without predictions has no difference. Give at least one seed.")
    _check_same_split((*first, *second))
    change = _pooled(first) - _pooled(second)
    low, high, p = _student(change)
    if len(first) == len(second) == 1:
        p = mcnemar(first[0], second[0])
    return Difference(points=100 * float(change.mean()), low=100 * low, high=100 * high, p=p)


def _student(change: NDArray[np.float64]) -> tuple[float, float, float]:
    """Interval and p of the mean of `change`, of shape (examples,)."""
    import numpy as np
    from scipy.stats import ttest_1samp

    mean = float(change.mean())
    # Without any spread the t statistic is 0/0: two rows that agree everywhere are common.
    if np.ptp(change) == 0:
        return mean, mean, 1.0 if mean == 0 else 0.0
    result = ttest_1samp(change, 0.0)
    interval = result.confidence_interval(CONFIDENCE)
    return float(interval.low), float(interval.high), float(result.pvalue)


def _pooled(seeds: Sequence[Predictions]) -> NDArray[np.float64]:
    """How often each example was right over the seeds, of shape (examples,)."""
    import numpy as np

    pooled: NDArray[np.float64] = np.mean([_right(predictions) for predictions in seeds], axis=0)
    return pooled


def _right(predictions: Predictions) -> NDArray[np.float64]:
    """1.0 where the prediction is right and 0.0 where not, of shape (examples,)."""
    import numpy as np

    return np.equal(predictions.labels, predictions.predicted).astype(np.float64)


def _check_same_split(several: Sequence[Predictions]) -> None:
    labels = several[0].labels
    for other in several:
        if len(other.predicted) != len(other.labels) or not other.labels:
            raise InvalidConfig(
                f"{len(other.predicted)} predictions for {len(other.labels)} test examples cannot "
                "be compared. Run this cell again: its file is incomplete."
            )
        if other.labels != labels:
            raise InvalidConfig(
                f"these rows were tested on different splits ({len(labels)} and "
                f"{len(other.labels)} examples, or other labels). Compare rows that share "
                "--task and --max-eval-samples."
            )
