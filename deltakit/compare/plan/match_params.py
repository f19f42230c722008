"""Methods of one size: each one's inner width solved for a number of trained parameters."""

from collections.abc import Callable, Iterator
from itertools import count

from deltakit.core.method import Method
from deltakit.core.spec import format_method

Count = Callable[[Method], int]
"""How many parameters a method trains."""

WIDEST = 1 << 16
"""The largest width that is tried."""


def matched(method: Method, target: int, trained: Count) -> Method:
    """The method with the width whose number of trained parameters is nearest to `target`.

    A method without a width stays as it is.

    Args:
        method: what is sized.
        target: trained parameters, the task head left out.
        trained: counts them.
    """
    if method.sized(1) is None:
        return method
    low, high = (
        0,
        next(n for n in _doubling() if n == WIDEST or trained(_sized(method, n)) >= target),
    )
    while high - low > 1:
        middle = (low + high) // 2
        if trained(_sized(method, middle)) < target:
            low = middle
        else:
            high = middle
    candidates = [_sized(method, n) for n in (low, high) if n > 0]
    return min(candidates, key=lambda each: abs(trained(each) - target))


def described(label: str, method: Method, target: int, trained: Count) -> str:
    """The result of matching, as a sentence for the report."""
    found = trained(method)
    off = 100 * (found - target) / target
    why = "" if method.sized(1) is not None else " (it has no width to choose)"
    return f"{label} matched to {target:,} trained parameters: {found:,} ({off:+.1f} %){why}."


def matched_label(label: str, method: Method) -> str:
    """The row's label: the method with the settings that were found."""
    return label if method.sized(1) is None else format_method(method)


def _doubling() -> Iterator[int]:
    return (1 << n for n in count())


def _sized(method: Method, width: int) -> Method:
    sized = method.sized(width)
    assert sized is not None
    return sized
