"""Checks of single values, for the configurations of methods and of comparisons."""

import math

from deltakit.errors import InvalidConfig


def check_positive(owner: object, **values: float) -> None:
    """Raises `InvalidConfig` unless every value is a number above zero."""
    for name, value in values.items():
        if not _is_number(value) or not value > 0:
            raise InvalidConfig(
                f"{type(owner).__name__}({name}={value!r}): {name} must be a number above zero."
            )


def check_whole(owner: object, **values: int) -> None:
    """Raises `InvalidConfig` unless every value is a whole number above zero."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InvalidConfig(
                f"{type(owner).__name__}({name}={value!r}): {name} must be a whole number above "
                "zero."
            )


def check_choice(owner: object, choices: tuple[str, ...], **values: str) -> None:
    """Raises `InvalidConfig` unless every value is one of `choices`."""
    for name, value in values.items():
        if value not in choices:
            raise InvalidConfig(
                f"{type(owner).__name__}({name}={value!r}): {name} is one of {', '.join(choices)}."
            )


def check_fraction(owner: object, **values: float) -> None:
    """Raises `InvalidConfig` unless every value is in [0, 1)."""
    for name, value in values.items():
        if not _is_number(value) or not 0 <= value < 1:
            raise InvalidConfig(
                f"{type(owner).__name__}({name}={value!r}): {name} must be at least 0 and below 1."
            )


def check_not_negative(owner: object, **values: float) -> None:
    """Raises `InvalidConfig` unless every value is a number, zero or above."""
    for name, value in values.items():
        if not _is_number(value) or value < 0:
            raise InvalidConfig(
                f"{type(owner).__name__}({name}={value!r}): {name} must be a number, zero or above."
            )


def check_bool(owner: object, **values: bool) -> None:
    """Raises `InvalidConfig` unless every value is True or False."""
    for name, value in values.items():
        if not isinstance(value, bool):
            raise InvalidConfig(
                f"{type(owner).__name__}({name}={value!r}): {name} is true or false."
            )


def _is_number(value: object) -> bool:
    """True if it is a finite number; booleans do not count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
