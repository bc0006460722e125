"""The training loop: trainer, schedule, checkpoints, history."""
