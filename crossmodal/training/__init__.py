"""Training: the task (model + objectives), the one loop, the optimiser, checkpoints."""
