"""One forward pass: how the active deltas change what a model computes."""
