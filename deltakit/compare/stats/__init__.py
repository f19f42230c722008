"""Metrics and statistical tests, without files or models."""

from deltakit.compare.stats.significance import paired_difference

__all__ = ["paired_difference"]
