"""Everything deltakit raises, as one class tree under :class:`DeltakitError`.

Each child is also the builtin a caller would expect to catch. A message names the value, the
choices and the next step.
"""

import difflib
from collections.abc import Iterable


class DeltakitError(Exception):
    """Root of every error that deltakit raises on purpose."""

    def __str__(self) -> str:
        # KeyError prints the repr of its message; ours are sentences for people.
        return str(self.args[0]) if self.args else ""


class UnknownName(DeltakitError, KeyError):
    """A name (of a method, a delta, a task, a site) that nothing is known by."""


class NameInUse(DeltakitError, ValueError):
    """A name that something else already has."""


class InvalidConfig(DeltakitError, ValueError):
    """A value that a configuration does not take, or a key that it does not have."""


class UnknownArchitecture(DeltakitError, LookupError):
    """A model whose sites deltakit does not know."""


class SiteNotFound(DeltakitError, LookupError):
    """A site that this model does not have."""


class IncompatibleDeltas(DeltakitError, ValueError):
    """Deltas that cannot be composed, or do not fit this model."""


class CheckpointError(DeltakitError, ValueError):
    """A saved delta that cannot be read, or does not fit this model."""


class NotMergeable(DeltakitError, TypeError):
    """A delta that cannot be folded into the weights of the base."""


class MissingExtra(DeltakitError, ImportError):
    """An optional package that is needed here and not installed."""


def unknown(kind: str, value: str, choices: Iterable[str], *, hint: str = "") -> UnknownName:
    """The error for a name that is not among `choices`, with the nearest ones suggested.

    Args:
        kind: what the name names, for example "method".
        value: the name that was given.
        choices: the names that exist.
        hint: one more sentence with the next step.
    """
    known = sorted(choices)
    parts = [f"unknown {kind} {value!r}.{nearest(value, known)}"]
    parts.append(f"Known: {', '.join(known)}." if known else "None is known yet.")
    if hint:
        parts.append(hint)
    return UnknownName(" ".join(parts))


def nearest(value: str, known: Iterable[str]) -> str:
    """A sentence that suggests the nearest of the `known` names, or nothing."""
    names: dict[str, str] = {}
    for name in sorted(known):
        names.setdefault(name.casefold(), name)
    found = difflib.get_close_matches(value.casefold(), names, n=2, cutoff=0.5)
    near = [names[each] for each in found]
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def first_line(error: BaseException) -> str:
    """The first line of another library's error, as a sentence."""
    first = next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)
    return first if first.endswith(".") else f"{first}."
