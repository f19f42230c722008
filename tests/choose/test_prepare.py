"""A budget that would do, where the one that was given is too small."""

import pytest

from deltakit.choose.prepare import _enough


@pytest.mark.parametrize(
    ("least", "said"), [(0.02, "0.1"), (8.1, "8.6"), (9.9, "11"), (14.2, "15"), (123, "130")]
)
def test_what_would_do_is_rounded_up_and_has_no_exponent(least: float, said: str) -> None:
    assert _enough(least) == said
    assert float(said) >= least
