"""Training: configuration, state, step, loop, checkpoints, metrics."""
