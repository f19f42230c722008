"""The run: cells are trained, evaluated and measured, on one device or many."""
