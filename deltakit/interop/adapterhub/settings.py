"""A config of the library's, judged key by key: what cannot be reproduced is refused by name."""

import math
from collections.abc import Mapping
from typing import Any, Final, TypeGuard

from deltakit.errors import CheckpointError, nearest

REQUIRED: Final = object()
"""In a table of defaults: the library has none."""
GATES: Final = "the library's gates average over padding, and deltakit's Gated leaves padding out"
"""Why no config with gates is read: a row's output depends on its batch there."""


class Settings:
    """The settings of one config, with the library's defaults."""

    def __init__(self, origin: str, given: Any, defaults: Mapping[str, Any]) -> None:
        if not isinstance(given, dict):
            raise CheckpointError(f"{origin}: a config must be a JSON object, not {given!r:.80}.")
        for key in given:
            if key not in defaults:
                raise CheckpointError(
                    f"{origin}: its config has a key {key!r} that deltakit does not know, so what "
                    f"it does is not known either.{nearest(key, defaults)}"
                )
        self.origin = origin
        self._values = {**defaults, **given}
        for key, value in self._values.items():
            if value is REQUIRED:
                raise CheckpointError(f"{origin}: its config has no {key!r}.")

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def refused(self, key: str, why: str) -> CheckpointError:
        """The error for a value that deltakit has no exact counterpart of."""
        return CheckpointError(f"{self.origin}: {key}={self[key]!r:.80} cannot be loaded: {why}.")

    def only(self, key: str, allowed: Any, why: str) -> None:
        """Raises `CheckpointError` unless the key has the one value that is understood."""
        if self[key] != allowed:
            raise self.refused(key, why)

    def all_only(self, table: Mapping[str, tuple[Any, str]]) -> None:
        """`only`, for a table of keys."""
        for key, (allowed, why) in table.items():
            self.only(key, allowed, why)

    def flag(self, key: str) -> bool:
        """True or False."""
        if not isinstance(self[key], bool):
            raise self.refused(key, "it must be true or false")
        return bool(self[key])

    def number(self, key: str) -> float:
        """A finite number."""
        if not is_number(self[key]):
            raise self.refused(key, "it must be a number")
        return self[key]

    def whole(self, key: str) -> int:
        """A whole number."""
        if not is_number(self[key]) or isinstance(self[key], float):
            raise self.refused(key, "it must be a whole number")
        return int(self[key])

    def choice(self, key: str, choices: Mapping[str, Any]) -> Any:
        """The value of the word under the key."""
        if not isinstance(self[key], str) or self[key] not in choices:
            raise self.refused(key, f"deltakit has {', '.join(choices)}")
        return choices[self[key]]

    def layers(self, key: str) -> frozenset[int]:
        """A list of layers' numbers; null means none."""
        value = [] if self[key] is None else self[key]
        if not isinstance(value, list) or not all(type(layer) is int for layer in value):
            raise self.refused(key, "it must be a list of layers' numbers")
        return frozenset(value)


def is_number(value: object) -> TypeGuard[float]:
    """True if it is a finite number; booleans do not count."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
