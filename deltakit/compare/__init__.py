"""The comparison harness: plan -> cells -> train -> evaluate -> measure -> store -> report.

Methods are used through their interface only: no method's name appears in it. The package can be
called: ``dk.compare(...)`` is `deltakit.compare.api.compare`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deltakit._moved import install

if TYPE_CHECKING:
    from deltakit.compare.results import Results

install()


class _CallableModule(ModuleType):
    """A package that can be called, as the function that most people want of it."""

    def __call__(self, *methods: Any, **settings: Any) -> "Results":
        from deltakit.compare.api import compare

        return compare(*methods, **settings)

    @property
    def __wrapped__(self) -> Any:
        # So that help, signatures and editors show the function.
        from deltakit.compare.api import compare

        return compare


sys.modules[__name__].__class__ = _CallableModule
