"""State, step and schedule of a training."""
