import numpy as np
import pytest
from scipy.stats import norm, t

from deltakit.compare.stats.t_plus_normal import TPlusNormal


@pytest.mark.parametrize("df", [1, 2, 4, 30, 999])
def test_without_the_normal_part_it_is_students(df: int) -> None:
    error = TPlusNormal(student=0.02, normal=0, df=df)
    assert error.tails(0.05) == pytest.approx(2 * t.sf(2.5, df), rel=1e-9)
    assert error.quantile(0.975) == pytest.approx(0.02 * t.ppf(0.975, df), rel=1e-7)
    assert error.quantile(0.8) == pytest.approx(0.02 * t.ppf(0.8, df), rel=1e-7)


def test_without_the_t_part_it_is_normal() -> None:
    error = TPlusNormal(student=0, normal=3, df=2)
    assert error.tails(4.5) == pytest.approx(2 * norm.sf(1.5))
    assert error.quantile(0.975) == pytest.approx(3 * norm.ppf(0.975))


def test_together_they_are_the_sum_of_two_independent_variables() -> None:
    random = np.random.default_rng(0)
    drawn = 0.5 * random.standard_t(2, size=400_000) + 0.7 * random.normal(size=400_000)
    error = TPlusNormal(student=0.5, normal=0.7, df=2)
    for x in (0.3, 1, 3):
        assert error.tails(x) == pytest.approx(np.mean(np.abs(drawn) >= x), rel=0.02)
    assert error.quantile(0.975) == pytest.approx(np.quantile(drawn, 0.975), rel=0.02)


def test_without_either_only_zero_is_possible() -> None:
    error = TPlusNormal(student=0, normal=0, df=3)
    assert (error.tails(0.0), error.tails(0.1), error.quantile(0.975)) == (1, 0, 0)
