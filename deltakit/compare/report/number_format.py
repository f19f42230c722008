"""Numbers as people say them."""

import math
from collections.abc import Sequence

MISSING = "–"
"""What people see where there is no value. In ``results.csv`` it is an empty field."""


def shorten(text: str, width: int = 120) -> str:
    """`text` on one line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "…"


def format_count(value: float) -> str:
    """A number of things: 1,234,567 is ``1.23 M``."""
    return _scaled(value, 1000, ("", "k", "M", "B", "T"))


def format_bytes(value: float) -> str:
    """A number of bytes: 4,718,592 is ``4.50 MiB``."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def format_duration(seconds: float) -> str:
    """A number of seconds: 80 is ``1 m 20 s``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} m"


def format_milliseconds(value: float) -> str:
    """A number of milliseconds, to three digits."""
    return f"{_digits(value)} ms"


def format_ratio(value: float) -> str:
    """A ratio: 1.084 is ``1.08×``."""
    return f"{value:.2f}×"


def format_percent(value: float) -> str:
    """A number of per cent, to three digits: 0.4321 is ``0.432 %``."""
    return f"{_digits(value)} %"


def format_numbers(*values: float) -> tuple[str, ...]:
    """Numbers with as many places as the first one needs for three digits, and four at most."""
    first = abs(values[0])
    places = min(4, max(0, 2 - math.floor(math.log10(first)))) if first else 0
    return tuple(f"{value:.{places}f}".replace("-", "−") for value in values)


def format_p_value(value: float) -> str:
    """A p value, to two digits: 0.02345 is ``0.023``."""
    if value < 0.001:
        return "< 0.001"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    power = 0
    # 999.5 would be printed as 1000 with three digits: it belongs to the next unit.
    while abs(value) >= 999.5 and power < len(units) - 1:
        value, power = value / step, power + 1
    number = f"{value:.0f}" if power == 0 else _digits(value)
    return f"{number} {units[power]}".rstrip()


def _digits(value: float) -> str:
    """`value` with three digits, and no exponent."""
    if value == 0:
        return "0"
    value = float(f"{value:.3g}")  # first, so that 0.9996 counts its places as 1
    places = 2 - math.floor(math.log10(abs(value)))
    return f"{value:.{min(max(places, 0), 6)}f}"
