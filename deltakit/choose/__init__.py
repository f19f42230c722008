"""The choice of a method, its size, its learning rate and its base, for one task and one budget."""
