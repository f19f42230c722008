"""Imports what every cell needs. A fork server does so once, and its processes begin from there."""

import importlib

from deltakit.compare.run.queue import silence_libraries

silence_libraries()
for _name in ("sklearn.metrics", "transformers.models.auto.modeling_auto", "transformers.trainer"):
    importlib.import_module(_name)
