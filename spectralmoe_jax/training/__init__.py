"""Training: the optimizer with its parameter groups, one step, and the loop around it."""
