"""The sites of a model: one data file a family."""
