"""Intervals for scores, and tests between rows of a table.

Two rows that saw the same test examples are compared as pairs, which is far sharper than comparing
two intervals by eye. The scores of a row's seeds and their errors are an `Evidence`; `difference`
compares two of them by one rule for every metric. ``docs/statistics.md`` gives the reasons for this
rule, and its measured error rates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.t_plus_normal import TPlusNormal
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Metric = Callable[[NDArray[np.generic], NDArray[np.generic]], float]
    """A score from labels and predictions, each with one entry an example."""

    Ratio = Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """A score from sums over examples: from shape (..., sums) to shape (...)."""

    Counts = NDArray[np.float64] | Any
    """What each example adds to sums, of shape (examples, sums): dense, or of `scipy.sparse`."""

    Each = Callable[[Predictions], NDArray[np.float64]]
    """What each example adds to a mean, of shape (examples,)."""

CONFIDENCE = 0.95
"""The confidence of every interval in a report."""

LEVEL = 1 - CONFIDENCE
"""Rows with a p of at most this are told apart."""

POWER = 0.8
"""How often a difference of `Difference.detectable` points is found."""

DRAWS = 500
"""Resamples of the test examples for a metric that is not a mean over them."""

_AT_ONCE = 50
"""Resamples that are in memory at a time."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference of two rows' scores on the same test examples.

    Attributes:
        points: difference of the scores in points (percentage points of accuracy, hundredths of
            any other metric), the first row minus the second, as a mean over seeds.
        low: lower end of its 95 % interval, in points.
        high: upper end.
        p: two-sided p of "both are equally good".
        detectable: the true difference, in points, that a comparison with this spread, these seeds
            and examples finds with 80 % power at 5 %; None where the spread is zero.
        about: what `p` and the interval generalise to. With one seed each, that is new test
            examples for these two trained "models"; only several seeds say something of "methods".
    """

    points: float
    low: float
    high: float
    p: float
    detectable: float | None
    about: Literal["models", "methods"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The scores of a row, and how far another draw of test examples would move them.

    Attributes:
        scores: the metric of each seed, of shape (seeds,).
        moves: of shape (seeds, draws), scaled so that ``moves @ moves.T`` is the covariance of
            `scores` over draws of test examples. Rows are paired by draw.
    """

    scores: NDArray[np.float64]
    moves: NDArray[np.float64]


# ------------------------------------------------------------------------- the score of one row


def proportion_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion.

    Args:
        correct: how many of the examples were right.
        n: how many there were.

    Returns:
        The lower and the upper end, fractions in [0, 1].

    Raises:
        InvalidConfig: `n` is zero, or `correct` is not between 0 and `n`.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= correct <= n:
        raise InvalidConfig(
            f"{correct} right of {n} is not a proportion: it takes at least one example, and "
            f"between 0 and all of them right. Check that the test split is not empty."
        )
    interval = binomtest(correct, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(first: Predictions, second: Predictions, *, each: Each | None = None) -> float:
    """McNemar's exact test: the two-sided p of "both are equally accurate".

    It counts the examples that one row gets right and the other wrong; without any, p is 1.

    Args:
        first: of one row.
        second: of another.
        each: 1.0 for an example that counts as right and 0.0 for another; by default `correct`.

    Raises:
        InvalidConfig: the two were not made on the same test split.
    """
    from scipy.stats import binomtest

    check_same_split((first, second))
    hits = each or correct
    change = hits(first) - hits(second)
    gained, lost = int((change > 0).sum()), int((change < 0).sum())
    if gained + lost == 0:
        return 1.0
    return float(binomtest(gained, gained + lost, 0.5).pvalue)


def across_seeds(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean over seeds, and the half-width of Student's 95 % interval around it.

    The half-width is None for a single value, which holds no information about other seeds.

    Raises:
        InvalidConfig: `values` is empty.
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


# ----------------------------------------------------------------------- evidence from examples


def evidence_from_predictions(
    seeds: Sequence[Predictions], *, each: Each | None = None
) -> Evidence:
    """The accuracy of a row, from one `Predictions` for each of its seeds.

    `each` is what an example adds to the mean; by default `correct`.

    Raises:
        InvalidConfig: there are none, or they were made on different test splits.
    """
    if not seeds:
        raise InvalidConfig("a row without predictions has no difference. Give at least one seed.")
    check_same_split(seeds)
    return evidence_from_examples([(each or correct)(predictions) for predictions in seeds])


def evidence_from_examples(values: ArrayLike) -> Evidence:
    """A metric that is a mean over examples: accuracy, squared error, log-likelihood.

    Args:
        values: what each example adds to the mean, of shape (seeds, examples).

    Raises:
        InvalidConfig: `values` has another shape, is empty, or is not finite.
    """
    import numpy as np

    each = np.asarray(values, dtype=np.float64)
    if each.ndim != 2 or not each.size or not np.isfinite(each).all():
        raise InvalidConfig(
            f"values of shape {each.shape} are not one finite number for each seed and example. "
            "Give an array of shape (seeds, examples)."
        )
    scores = each.mean(axis=1)
    n = each.shape[1]
    return Evidence(scores=scores, moves=(each - scores[:, None]) / np.sqrt(n * max(n - 1, 1)))


def evidence_from_metric(metric: Metric, labels: ArrayLike, predicted: ArrayLike) -> Evidence:
    """A metric of the whole corpus (Pearson, the area under ROC), by a bootstrap over examples.

    The resampled examples depend on nothing but their number, so that rows stay paired.

    Args:
        metric: takes labels and predictions and returns the score; called ``DRAWS`` times a seed.
        labels: of shape (examples,), or (examples, labels) where an example has several.
        predicted: of shape (seeds, *labels.shape), or (seeds, examples, classes) for scores.

    Raises:
        InvalidConfig: the shapes do not fit, or the metric is not finite on some resample.
    """
    import numpy as np

    truth, guesses = np.asarray(labels), np.asarray(predicted)
    shape = guesses.shape[1:]
    fits = shape == truth.shape or (len(shape) == 2 and shape[:1] == truth.shape)
    if not truth.size or not guesses.size or not fits:
        raise InvalidConfig(
            f"predictions of shape {guesses.shape} do not fit labels of shape {truth.shape}. "
            "Give (seeds, examples) and (examples,)."
        )
    scores = [metric(truth, guess) for guess in guesses]
    return _bootstrapped(scores, [redrawn_scores(metric, truth, guess) for guess in guesses])


def evidence_from_counts(counts: Sequence[Counts], ratio: Ratio) -> Evidence:
    """A metric that is a function of sums over examples (F1, Matthews, perplexity).

    The resamples are those of `evidence_from_metric`, and so are the results.

    Args:
        counts: for each seed what each example adds to the sums, of shape (examples, sums).
        ratio: the score of sums; it is called once a seed and for every `_AT_ONCE` resamples.

    Raises:
        InvalidConfig: there are none, or the metric is not finite on some resample.
    """
    if not counts or not counts[0].shape[0]:
        raise InvalidConfig("a row without predictions has no difference. Give at least one seed.")
    scores = [float(ratio(each.sum(axis=0))) for each in counts]
    return _bootstrapped(scores, redrawn_ratios(counts, ratio))


def _bootstrapped(scores: Sequence[float], redrawn: Sequence[NDArray[np.float64]]) -> Evidence:
    import numpy as np

    found, drawn = np.array(scores), np.array(redrawn)
    if not (np.isfinite(found).all() and np.isfinite(drawn).all()):
        raise InvalidConfig(
            "the metric is not a finite number on some resample of the examples. Give it a value "
            "for predictions that are all the same."
        )
    moves = (drawn - drawn.mean(axis=1, keepdims=True)) / np.sqrt(DRAWS - 1)
    return Evidence(scores=found, moves=moves)


def redrawn_scores(
    metric: Metric, labels: NDArray[np.generic], predicted: NDArray[np.generic]
) -> NDArray[np.float64]:
    """The metric on each resample of the examples, of shape (draws,)."""
    import numpy as np

    return np.array([metric(labels[draw], predicted[draw]) for draw in _resamples(len(labels))])


def redrawn_ratios(counts: Sequence[Counts], ratio: Ratio) -> list[NDArray[np.float64]]:
    """The ratio on each resample of the examples, for each of `counts` of shape (draws,)."""
    import numpy as np

    examples = counts[0].shape[0]
    parts = [[ratio(weights @ each) for each in counts] for weights in _weights(examples)]
    return [np.concatenate(several) for several in zip(*parts, strict=True)]


def percentiles(drawn: NDArray[np.float64]) -> tuple[float, float]:
    """The ends of the bootstrap's 95 % interval."""
    import numpy as np

    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def _resamples(n: int) -> Iterator[NDArray[np.int64]]:
    """The rows of each resample. They depend on the number of examples alone."""
    import numpy as np

    generator = np.random.default_rng(0)
    return (generator.integers(n, size=n) for _ in range(DRAWS))


def _weights(n: int) -> Iterator[NDArray[np.float64]]:
    """How often each example is in each resample, of shape (resamples, n), some at a time."""
    import numpy as np

    draws = _resamples(n)
    while several := list(islice(draws, _AT_ONCE)):
        yield np.array([np.bincount(draw, minlength=n) for draw in several], dtype=np.float64)


# --------------------------------------------------------------------------------- differences


def paired_difference(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    *,
    seed_sd: float = 0.0,
    each: Each | None = None,
    paired: bool = True,
) -> Difference:
    """The difference of two rows' accuracies; see `difference`.

    Where the seeds of each row repeat one another, as a single one does, p is `mcnemar`'s.

    Args:
        first: one entry for each seed of the first row.
        second: one for each seed of the second row.
        seed_sd: as in `difference`.
        each: 1.0 for an example that counts as right and 0.0 for another; by default `correct`.
        paired: as in `difference`.

    Raises:
        InvalidConfig: a row has no predictions, or they were made on different test splits.
    """
    hits = each or correct
    rows = [evidence_from_predictions(row, each=hits) for row in (first, second)]
    check_same_split((first[0], second[0]))
    found = difference(*rows, seed_sd=seed_sd, paired=paired)
    if _all_alike(first, hits) and _all_alike(second, hits):
        return replace(found, p=max(found.p, mcnemar(first[0], second[0], each=hits)))
    return found


def _all_alike(row: Sequence[Predictions], hits: Each) -> bool:
    """Whether the seeds of a row repeat one another."""
    return len({(seed.predicted, hits(seed).tobytes()) for seed in row}) == 1


def difference(
    first: Evidence, second: Evidence, *, seed_sd: float = 0.0, paired: bool = True
) -> Difference:
    """The difference of two rows' scores, paired by test example and by seed.

    The error of a mean over seeds is a Student's t variable, scaled by what the per-seed
    differences vary, plus a normal one, scaled by what test examples move all seeds together.
    A claim about methods is never surer than the same claim about these trained models.

    Args:
        first: the first row.
        second: the second row, from the same examples.
        seed_sd: how much a row's score varies between seeds, as a standard deviation in points,
            where that is known from elsewhere. It counts only where both rows have a single seed,
            which cannot say it.
        paired: whether both rows have the same seeds, in the same order. Rows of different numbers
            of seeds never have.

    Raises:
        InvalidConfig: the two rows are not from the same examples.
    """
    if first.moves.shape[1] != second.moves.shape[1]:
        raise InvalidConfig(
            f"rows with {first.moves.shape[1]} and {second.moves.shape[1]} test examples or "
            "resamples cannot be paired. Compare rows that were tested on the same split."
        )
    change = float(first.scores.mean() - second.scores.mean())
    several = len(first.scores) > 1 or len(second.scores) > 1
    errors = [_of_models(first, second, seed_sd=0.0 if several else seed_sd / 100)]
    errors += [_of_methods(first, second, paired)] if several else []
    ends = [error.quantile((1 + CONFIDENCE) / 2) for error in errors]
    detectable = max(end + error.quantile(POWER) for end, error in zip(ends, errors, strict=True))
    return Difference(
        points=100 * change,
        low=100 * (change - max(ends)),
        high=100 * (change + max(ends)),
        p=max(error.tails(abs(change)) for error in errors),
        detectable=100 * detectable if detectable else None,
        about="methods" if several or seed_sd else "models",
    )


def _of_models(first: Evidence, second: Evidence, *, seed_sd: float) -> TPlusNormal:
    """The error of a difference between these very models: that of the test examples."""
    import numpy as np

    moves = first.moves.mean(axis=0) - second.moves.mean(axis=0)
    spread = float(np.linalg.norm(moves))
    # Each of the two rows varies by `seed_sd`.
    return TPlusNormal(student=spread, normal=2**0.5 * seed_sd, df=max(moves.size - 1, 1))


def _of_methods(first: Evidence, second: Evidence, paired: bool) -> TPlusNormal:
    """The error of a difference between what other seeds and other examples would give."""
    import numpy as np

    seeds = len(first.scores)
    if not paired or seeds != len(second.scores):
        return _unpaired(first, second)
    moves = first.moves - second.moves
    # What examples move all seeds by: the mean covariance between two seeds. What they move one
    # seed alone by is part of the variance between seeds already.
    total, own = seeds**2 * np.sum(moves.mean(axis=0) ** 2), np.sum(moves**2)
    return TPlusNormal(
        student=float(np.std(first.scores - second.scores, ddof=1) / seeds**0.5),
        normal=float(max(total - own, 0.0) / (seeds * (seeds - 1))) ** 0.5,
        df=seeds - 1,
    )


def _unpaired(first: Evidence, second: Evidence) -> TPlusNormal:
    """The same for different seeds, on the cautious side.

    The degrees of freedom are the fewer ones. A single seed is taken to vary as the other row's.
    """
    import numpy as np

    rows = (first, second)
    several = [row for row in rows if len(row.scores) > 1]
    known = [float(np.var(row.scores, ddof=1)) for row in several]
    variances = known if len(known) == 2 else known * 2
    return TPlusNormal(
        student=sum(v / len(row.scores) for v, row in zip(variances, rows, strict=True)) ** 0.5,
        normal=float(np.linalg.norm(first.moves.mean(axis=0) - second.moves.mean(axis=0))),
        df=min(len(row.scores) for row in several) - 1,
    )


# ---------------------------------------------------------------------------------- several rows


def holm(p: Mapping[Key, float]) -> dict[Key, float]:
    """Holm's adjusted p of each of several comparisons, in the order of `p`.

    Where those of at most `LEVEL` are called different, that any such call is wrong happens in at
    most 5 % of tables.
    """
    adjusted: dict[Key, float] = {}
    least = 0.0
    for done, key in enumerate(sorted(p, key=p.__getitem__)):
        least = max(least, min(1.0, (len(p) - done) * p[key]))
        adjusted[key] = least
    return {key: adjusted[key] for key in p}


def compact_letter_display(
    ranked: Sequence[str], different: Collection[tuple[str, str]]
) -> dict[str, str]:
    """Letters for a table's rows: those that share one cannot be told apart.

    Args:
        ranked: the labels of the rows, best first; the first row's letters begin with "a".
        different: the pairs that are told apart, in either order.

    Returns:
        The letters of each row, in the order of `ranked`: a to z, then a1 to z1 and so on.
    """
    groups = {frozenset(ranked)}
    for pair in combinations(ranked, 2):
        if pair in different or pair[::-1] in different:
            # Piepho's insert and absorb: split what holds both, then drop what lies within another.
            pieces = {
                group - {label} if group.issuperset(pair) else group
                for group in groups
                for label in pair
            }
            groups = {piece for piece in pieces if not any(piece < other for other in pieces)}
    ordered = sorted(groups, key=lambda group: [label not in group for label in ranked])
    names = [chr(97 + at % 26) + (str(at // 26) if at >= 26 else "") for at in range(len(ordered))]
    return {
        label: "".join(name for name, group in zip(names, ordered, strict=True) if label in group)
        for label in ranked
    }


def is_constant(predictions: Predictions) -> bool:
    """True if a run predicts one class for every example of a split that has several."""
    return len({*predictions.predicted}) == 1 < len({*predictions.labels})


def correct(predictions: Predictions) -> NDArray[np.float64]:
    """1.0 where the prediction is right and 0.0 where not, of shape (examples,)."""
    import numpy as np

    pairs = zip(predictions.labels, predictions.predicted, strict=True)
    return np.array([label == predicted for label, predicted in pairs], dtype=np.float64)


def check_same_split(several: Sequence[Predictions]) -> None:
    """Raises `InvalidConfig` where predictions were not made on the same test split."""
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
