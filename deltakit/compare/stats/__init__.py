"""Metrics and statistical tests, without files or models."""
