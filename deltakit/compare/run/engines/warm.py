"""Imports what every cell needs. A fork server does so once, and its processes begin from there."""

import importlib

from deltakit.compare.run.queue import quiet

quiet()
for _name in ("sklearn.metrics", "transformers.models.auto.modeling_auto", "transformers.trainer"):
    importlib.import_module(_name)
