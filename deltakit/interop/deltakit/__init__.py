"""deltakit's own folders, and those of training loops."""
