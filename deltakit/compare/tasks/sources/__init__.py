"""Sources of tasks: local files, the Hub, and how a task is assembled from either."""
