"""Measurements: parameters, bytes, step time, latency, hardware."""
