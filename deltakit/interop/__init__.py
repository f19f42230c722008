"""Deltas between formats: deltakit's own folders and other libraries', read and written.

One file, or package, a format. Importing this package registers every format in it.
"""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
