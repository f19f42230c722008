"""The choice of a method, its size, its learning rate and its base, for one task and one budget.

The package can be called: ``dk.choose(...)`` is `deltakit.choose.api.choose`.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deltakit.choose.choice import Choice


class _CallableModule(ModuleType):
    """A package that can be called, as the function that most people want of it."""

    def __call__(self, *task: Any, **settings: Any) -> "Choice":
        from deltakit.choose.api import choose

        return choose(*task, **settings)

    @property
    def __wrapped__(self) -> Any:
        # So that help, signatures and editors show the function.
        from deltakit.choose.api import choose

        return choose


sys.modules[__name__].__class__ = _CallableModule
