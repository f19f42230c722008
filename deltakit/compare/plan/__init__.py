"""The plan: from a request to cells, trainings and learning rates."""
