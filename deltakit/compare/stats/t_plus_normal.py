"""The distribution of an error with two sources: an estimated spread, and a known one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class TPlusNormal:
    """`student` times a Student's t variable, plus `normal` times a standard normal one.

    It is what an error looks like of which one part has a standard deviation that was estimated
    with `df` degrees of freedom, and the other one that is known. Once the estimated variance is
    replaced by the true one, all of it is normal: every probability is a mean over that variance.
    """

    student: float
    normal: float
    df: int

    def tails(self, x: float) -> float:
        """The probability of a distance of `x` or more from zero; `x` is not negative."""
        import numpy as np
        from scipy.special import ndtr

        if self.student == self.normal == 0:
            return float(x == 0)
        ratio, weights = _variances(self.df)
        spread = np.sqrt(self.normal**2 + self.student**2 * ratio)
        return min(1.0, float(2 * weights @ ndtr(-x / spread)))

    def quantile(self, probability: float) -> float:
        """The quantile of a `probability` of more than a half."""
        from scipy.optimize import brentq
        from scipy.special import stdtrit

        above = 1 - probability
        # Both variables together are seldom beyond what each is beyond half as often.
        most = (self.student + self.normal) * float(stdtrit(self.df, 1 - above / 2))
        if most == 0:
            return 0.0
        return float(brentq(lambda x: self.tails(x) - 2 * above, 0.0, most, xtol=1e-9 * most))


@cache
def _variances(df: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A grid over the ratio of the true variance to its estimate, and the weight of each point."""
    import numpy as np
    from scipy.stats import chi2

    # Evenly spaced in the logarithm, where the plain sum over so smooth a density is all but exact.
    grid = np.geomspace(chi2.ppf(1e-13, df), chi2.isf(1e-13, df), 400)
    density = chi2.pdf(grid, df) * grid
    return df / grid, density / density.sum()
