"""A run on disk: its directory, checkpoints, logs, and the runs that it starts from."""
