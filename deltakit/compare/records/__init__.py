"""Records: what a run writes and reads back, plain data without torch."""
