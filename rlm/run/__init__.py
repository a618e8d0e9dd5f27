"""A run on the disk: its folder, logs, checkpoints, steps, signals, time, progress."""
