"""Training runs: one adapter or many at once, their trainers, checkpoints and progress."""
