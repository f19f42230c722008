"""Deltas between formats: deltakit's own folders and other libraries', read and written.

One file, or package, a format. Importing this package makes the names of the formats known; a
format's file is imported when it is used.
"""

from deltakit.interop import peft_rows
from deltakit.interop.formats import FORMATS

FORMATS.add_lazy("adapterhub", "deltakit.interop.adapterhub:AdapterHub")
FORMATS.add_lazy("deltakit", "deltakit.interop.deltakit.format:Native")
FORMATS.add_lazy("peft", "deltakit.interop.peft.folder:Peft")
FORMATS.add_lazy("training", "deltakit.interop.deltakit.training:TrainingCheckpoint")

__all__ = ["FORMATS", "peft_rows"]
