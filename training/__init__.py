"""Training: tasks, the loop, checkpoints, several hosts."""
