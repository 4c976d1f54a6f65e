"""Training: optimizer, step, loop, logs, and `train` from a configuration to a trained run."""
