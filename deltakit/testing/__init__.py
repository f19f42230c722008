"""Tests for a method or a model family of your own, and the tiny models that they run on.

::

    from deltakit.testing import MethodConformance

    class TestMyMethod(MethodConformance):
        method = MyMethod(rank=4)

The laws themselves are functions, which need no test runner: `deltakit.testing.checks`, `loops`,
`states` and `wrappers`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltakit.testing.case import Case, NotApplicable
    from deltakit.testing.checks import LAWS
    from deltakit.testing.fresh import check_loads_elsewhere
    from deltakit.testing.models import MODEL_TYPES, fill, make_inputs, make_model
    from deltakit.testing.sites import SITE_LAWS
    from deltakit.testing.suite import FamilyConformance, MethodConformance

_HOMES = {
    "deltakit.testing.case": ("Case", "NotApplicable"),
    "deltakit.testing.checks": ("LAWS",),
    "deltakit.testing.fresh": ("check_loads_elsewhere",),
    "deltakit.testing.models": ("MODEL_TYPES", "fill", "make_inputs", "make_model"),
    "deltakit.testing.sites": ("SITE_LAWS",),
    "deltakit.testing.suite": ("FamilyConformance", "MethodConformance"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "LAWS",
    "MODEL_TYPES",
    "SITE_LAWS",
    "Case",
    "FamilyConformance",
    "MethodConformance",
    "NotApplicable",
    "check_loads_elsewhere",
    "fill",
    "make_inputs",
    "make_model",
]


def __getattr__(name: str) -> Any:
    # Only the classes need pytest, so only their module imports it.
    if name not in _HOME_OF:
        raise AttributeError(f"module 'deltakit.testing' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)
