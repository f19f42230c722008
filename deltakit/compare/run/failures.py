"""The treatment of cells that failed."""

from enum import Enum


class Failures(Enum):
    """The treatment of cells that failed in an earlier run."""

    KEEP = "keep"
    RETRY = "retry"
