"""deltakit's own folders. Importing this package registers the format."""

from deltakit.interop.deltakit.format import Native

__all__ = ["Native"]
