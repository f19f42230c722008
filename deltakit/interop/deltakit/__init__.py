"""deltakit's own folders. Importing this package registers the format."""

from deltakit.interop.deltakit.format import Native
from deltakit.interop.deltakit.training import TrainingCheckpoint

__all__ = ["Native", "TrainingCheckpoint"]
