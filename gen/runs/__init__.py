"""A run on disk: its directory, checkpoints, log and base, and a trained run opened again."""
