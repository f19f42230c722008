"""Plugins: what installed packages add to deltakit, found by their entry points.

A package announces a module under ``[project.entry-points."deltakit.methods"]`` in its
``pyproject.toml``. Importing the module runs its decorators, which register what it has.
"""

import warnings
from importlib.metadata import EntryPoint, entry_points

from deltakit.errors import first_line

GROUPS = (
    "engines",
    "families",
    "formats",
    "judges",
    "kinds",
    "methods",
    "metrics",
    "models",
    "profiles",
    "tasks",
    "weights",
)
"""The entry-point groups, each with ``deltakit.`` before it."""

_LOADED: set[str] = set()


class PluginWarning(UserWarning):
    """A plugin that cannot be imported. Everything else works without it."""


def load_plugins(group: str) -> None:
    """Imports the modules of an entry-point group, once in a process.

    A module that cannot be imported gives a `PluginWarning` that names its package.

    Args:
        group: one of `GROUPS`.
    """
    if group in _LOADED:
        return
    _LOADED.add(group)  # first: a plugin may look names up while it is imported
    for entry in sorted(entry_points(group=f"deltakit.{group}")):
        _load(entry)


def _load(entry: EntryPoint) -> None:
    try:
        entry.load()
    except Exception as error:  # any error of another package's code
        package = entry.dist.name if entry.dist is not None else "unknown"
        warnings.warn(
            f"the package {package!r} announces {entry.name!r} in {entry.group}, but "
            f"{entry.value} cannot be imported: {type(error).__name__}: {first_line(error)} "
            f"Update or uninstall {package}.",
            PluginWarning,
            stacklevel=2,
        )
