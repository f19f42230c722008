"""Amounts of memory as people write them: ``512 MB``, ``1.5GB``, ``800 MiB``."""

import re

from deltakit.errors import InvalidConfig

_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]?)(i?)b?\s*", re.IGNORECASE)
_EXPONENTS = {"": 0, "k": 1, "m": 2, "g": 3}


def parse_size(name: str, value: str | int) -> int:
    """The number of bytes. A kilobyte is 1000 bytes, a kibibyte (KiB) 1024.

    Args:
        name: of the setting, for the message.
        value: a number of bytes, or a number with its unit.

    Raises:
        InvalidConfig: it is not an amount above zero.
    """
    found = None if isinstance(value, bool) else _SIZE.fullmatch(str(value))
    exponent = 0 if found is None else _EXPONENTS[found[2].lower()]
    factor = 1024 if found is not None and found[3] else 1000
    size = 0 if found is None else int(float(found[1]) * factor**exponent)
    if size < 1:
        raise InvalidConfig(
            f"{name}={value!r}: an amount of memory above zero, as in '512 MB', '1.5GB' or "
            "'800 MiB'."
        )
    return size


def format_size(size: int) -> str:
    """A number of bytes: 366,100,000 is ``366.1 MB``."""
    return f"{size / 1e6:,.1f} MB"
