"""Former modules of the comparison, imported from where they are now, with a dated warning."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_COMPARE = "deltakit.compare."
_MOVED = {
    "contrasts": "stats.contrasts",
    "metrics": "stats.metrics",
    "planning": "plan.resolve",
    "request": "plan.request",
    "schema": "records.result",
}
"""Modules that scripts outside the package import. They moved on 2026-11-26."""
_RENAMED = {"planning": {"resolve": "build_plan"}}


class _Moved(MetaPathFinder, Loader):
    """A finder that is asked last, for names under which no module exists."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        moved = name.startswith(_COMPARE) and name.removeprefix(_COMPARE) in _MOVED
        return ModuleSpec(name, self) if moved else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        old = spec.name.removeprefix(_COMPARE)
        new = _COMPARE + _MOVED[old]
        warnings.warn(
            f"{spec.name} moved to {new} on 2026-11-26; the old name goes in 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )
        module = ModuleType(spec.name, f"The former name of {new}.")
        found = importlib.import_module(new)
        names = {former: getattr(found, now) for former, now in _RENAMED.get(old, {}).items()}
        vars(module).update({**vars(found), **names, "__name__": spec.name})
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Does nothing: the module is filled where it is made."""


def install() -> None:
    """Lets former names be imported. Installing twice changes nothing."""
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved())
