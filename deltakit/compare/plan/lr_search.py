"""The search for a learning rate: the same one for every method.

One grid, even in log space and wide enough for all, the same number of trials each. A trial trains
on the training split at a seed that no reported row has, and is judged on the validation split.
"""

import math
from collections.abc import Sequence

from deltakit.compare.records.trial import Choice, Trial
from deltakit.compare.stats.metrics import Direction
from deltakit.errors import DeltakitError, InvalidConfig

GRID = (3e-5, 3e-2)
"""The lowest and the highest rate: from what full fine-tuning takes to what (IA)³ takes."""

TUNING_SEED = 1_000_003
"""The seed of all trials. Rows are reported with seeds 0, 1, ..."""


class SearchFailed(DeltakitError, RuntimeError):
    """A search of which every trial failed."""


def rates(trials: int, grid: tuple[float, float] = GRID) -> tuple[float, ...]:
    """The rates of a search, even in log space, both ends included.

    Args:
        trials: how many.
        grid: the lowest and the highest.

    Raises:
        InvalidConfig: fewer than two, or a grid without extent.
    """
    low, high = grid
    if trials < 2:
        raise InvalidConfig(
            f"--trials {trials}: a search takes two at least. Give --trials 2 or more, or "
            "1 for no search."
        )
    if not 0 < low < high < math.inf:
        raise InvalidConfig(
            f"--lr-grid {low:g},{high:g}: give a lower and a higher rate, as in 3e-5,3e-2."
        )
    step = (math.log(high) - math.log(low)) / (trials - 1)
    # Two digits: a rate that people can type again.
    return tuple(float(f"{math.exp(math.log(low) + n * step):.2g}") for n in range(trials))


def choose(trials: Sequence[Trial], direction: Direction = Direction.HIGHER) -> Choice:
    """The rate of the best trial; of equal ones the lowest, which is the safer one.

    Args:
        trials: all that were tried.
        direction: which scores are the better ones.

    Raises:
        SearchFailed: none of them has a score.
    """
    scored = [(direction.rank(t.score), -t.lr, t) for t in trials if t.score is not None]
    if not scored:
        reasons = "; ".join(f"{trial.lr:g}: {trial.reason}" for trial in trials)
        raise SearchFailed(
            f"every learning rate failed ({reasons}). Give lower ones with --lr-grid."
        )
    *_, best = max(scored, key=lambda each: each[:2])
    return Choice(lr=best.lr, trials=tuple(trials))
