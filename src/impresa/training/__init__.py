"""The loop, its processes, checkpoints and logs."""
