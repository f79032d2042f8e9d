"""Runs on disk: the run directory, checkpoints, logs and base runs, and the reading of trained runs."""
