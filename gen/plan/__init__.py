"""Dry runs (--dry-run): memory, FLOPs and communication of a training step, before any device is booked."""
