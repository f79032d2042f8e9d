"""Dry runs: memory, FLOPs and traffic of a step, before any device is booked."""
