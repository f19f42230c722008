"""Attaching deltas to a model. It is given methods and names none."""
