"""The choice among finalists, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from deltakit.choose.decide.halving import MARGIN
from deltakit.compare.records.result import Predictions, Scores
from deltakit.compare.stats.metrics import Direction, Metric
from deltakit.compare.stats.significance import CONFIDENCE, LEVEL, Evidence
from deltakit.compare.stats.t_plus_normal import TPlusNormal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DRAWS = 4000
"""Resamples of examples and seeds."""

SPREAD_SCALE = 0.01
"""Scale of the prior of the standard deviation between finalists: one point."""

SPREADS = (1e-5, 1.0, 60)
"""The grid of that standard deviation: lowest, highest, how many."""


def choose_finalist(
    finalists: Mapping[str, Sequence[Predictions]],
    costs: Mapping[str, float],
    metric: Metric,
    *,
    margin: float = MARGIN,
) -> str:
    """The cheapest finalist within `margin` points of the best that cannot be told from it.

    Args:
        finalists: the predictions of each one's seeds, on the validation split.
        costs: what each one costs; of equal ones the better is taken.
        metric: the score.
        margin: points that do not matter.
    """
    scores = {name: mean_score(seeds, metric) for name, seeds in finalists.items()}
    best = max(scores, key=lambda name: (metric.direction.rank(scores[name]), -costs[name]))

    def as_good(name: str) -> bool:
        behind = 100 * metric.direction.rank(scores[best] - scores[name])
        if behind > margin:
            return False
        return metric.difference(finalists[best], finalists[name]).p > LEVEL

    tied = [name for name in finalists if name == best or as_good(name)]
    return min(tied, key=lambda name: (costs[name], -metric.direction.rank(scores[name])))


def mean_score(seeds: Sequence[Predictions], metric: Metric) -> float:
    """The mean of the metric over seeds."""
    return sum(map(metric.value, seeds)) / len(seeds)


def probability(
    finalists: Mapping[str, Sequence[Predictions]],
    choice: str,
    metric: Metric,
    *,
    margin: float = MARGIN,
) -> float:
    """The share of resamples in which the choice is within `margin` points of the best finalist.

    A resample draws other examples and other seeds. See `draws`.

    Args:
        finalists: the predictions of each one's seeds, on the validation and test examples
            together (`pooled`). The choice saw the former, which the prior of `draws` allows for.
        choice: which of them was chosen.
        metric: the score.
        margin: points that do not matter.
    """
    import numpy as np

    if len(finalists) == 1:
        return 1.0
    names = list(finalists)
    rows = [metric.evidence(finalists[name]) for name in names]
    drawn = 100 * draws(rows)
    if metric.direction is Direction.LOWER:
        drawn = -drawn
    behind = drawn.max(axis=1) - drawn[:, names.index(choice)]
    return float(np.mean(behind <= margin))


def draws(rows: Sequence[Evidence], *, number: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Scores that other examples and other seeds would give, of shape (number, rows).

    They are draws from a posterior of the rows' differences; the mean of all rows is zero.
    Examples move all rows and seeds together: their covariance is taken between different seeds,
    because what examples move one seed alone by is part of the variance between seeds. The
    variance between seeds is estimated from all rows together, and drawn with as many degrees of
    freedom. How far apart rows truly are is not known either: its prior is half-Cauchy (Gelman
    2006), with a scale of one point. It moves differences that noise explains towards zero.

    Args:
        rows: the evidence of each row, from the same examples; two at the least.
        number: of resamples.
        seed: of the draws.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    means = np.array([row.scores.mean() for row in rows])
    examples = _example_covariance(rows)
    variances, freedom = _seed_variance(rows)
    apart = _contrasts(len(rows))
    ratio = freedom / generator.chisquare(freedom, number) if freedom else np.zeros(number)
    noise = apart @ examples @ apart.T + ratio[:, None, None] * (apart * variances @ apart.T)
    values, vectors = np.linalg.eigh(noise)
    values = np.clip(values, 1e-12, None)
    seen = (vectors.swapaxes(1, 2) @ (apart @ means)[:, None])[..., 0]
    between = _draw_spreads(seen, values, generator)[:, None] ** 2
    kept = between / (between + values)
    true = kept * seen + np.sqrt(kept * values) * generator.standard_normal(seen.shape)
    drawn: NDArray[np.float64] = (vectors @ true[..., None])[..., 0] @ apart
    return drawn


def _contrasts(rows: int) -> NDArray[np.float64]:
    """Orthonormal contrasts between rows, of shape (rows - 1, rows)."""
    import numpy as np

    apart: NDArray[np.float64] = np.linalg.svd(np.eye(rows) - 1 / rows)[2][: rows - 1]
    return apart


def _draw_spreads(
    seen: NDArray[np.float64], noise: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.float64]:
    """One draw each of the standard deviation between rows, given contrasts and their noise.

    Args:
        seen: contrasts of shape (draws, contrasts), uncorrelated.
        noise: their variances, of the same shape.
        generator: of the draws.
    """
    import numpy as np

    grid = np.geomspace(*SPREADS)
    total = noise[:, None, :] + grid[:, None] ** 2
    fit = -0.5 * (np.log(total) + seen[:, None, :] ** 2 / total).sum(axis=-1)
    prior = np.log(grid) - np.log1p((grid / SPREAD_SCALE) ** 2)
    weights = np.exp(fit + prior - (fit + prior).max(axis=1, keepdims=True))
    below = np.cumsum(weights, axis=1)
    at = (below < generator.random((len(seen), 1)) * below[:, -1:]).sum(axis=1)
    spreads: NDArray[np.float64] = grid[at]
    return spreads


def _example_covariance(rows: Sequence[Evidence]) -> NDArray[np.float64]:
    """The covariance of the rows' means over draws of examples, shape (rows, rows)."""
    import numpy as np

    sums = np.array([row.moves.sum(axis=0) for row in rows])
    counts = np.array([len(row.scores) for row in rows])
    if min(counts) == 1:
        means: NDArray[np.float64] = sums / counts[:, None]
        return means @ means.T
    total = sums @ sums.T
    pairs = np.outer(counts, counts).astype(float)
    same = np.zeros_like(total)
    for one, first in enumerate(rows):
        for other, second in enumerate(rows):
            shared = min(len(first.scores), len(second.scores))
            same[one, other] = np.sum(first.moves[:shared] * second.moves[:shared])
            pairs[one, other] -= shared
    covariance: NDArray[np.float64] = (total - same) / pairs
    return covariance


def _seed_variance(rows: Sequence[Evidence]) -> tuple[NDArray[np.float64], int]:
    """The variance of each row's mean between seeds, and its degrees of freedom."""
    import numpy as np

    several = [row for row in rows if len(row.scores) > 1]
    freedom = sum(len(row.scores) - 1 for row in several)
    if not freedom:
        return np.zeros(len(rows)), 0
    pooled = sum(float(np.var(row.scores, ddof=1)) * (len(row.scores) - 1) for row in several)
    return np.array([pooled / freedom / len(row.scores) for row in rows]), freedom


def pooled(first: Predictions, second: Predictions) -> Predictions:
    """The predictions of one model on two splits, as one."""
    scores = None
    if first.scores is not None and second.scores is not None:
        scores = Scores([*first.scores.array, *second.scores.array])
    return Predictions(
        labels=first.labels + second.labels,
        predicted=first.predicted + second.predicted,
        scores=scores,
        classes=first.classes,
    )


def score_interval(
    finalists: Mapping[str, Sequence[Predictions]], name: str, metric: Metric
) -> tuple[float, float, float]:
    """The mean score of a finalist with its 95 % interval: mean, lower end, upper end.

    The interval is over seeds and examples. The variance between seeds is that of all finalists.
    """
    import numpy as np

    rows = [metric.evidence(seeds) for seeds in finalists.values()]
    at = list(finalists).index(name)
    variances, freedom = _seed_variance(rows)
    examples = _example_covariance(rows)[at, at]
    error = TPlusNormal(
        student=float(np.sqrt(variances[at])),
        normal=float(np.sqrt(max(examples, 0.0))),
        df=max(freedom, 1),
    )
    middle, half = float(rows[at].scores.mean()), error.quantile((1 + CONFIDENCE) / 2)
    return middle, middle - half, middle + half
