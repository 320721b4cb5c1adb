"""A training run: set-up, loop, checkpoints, logs and the finished folder."""
