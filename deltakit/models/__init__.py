"""Base models: found, loaded, with a task head, in a weight format."""
