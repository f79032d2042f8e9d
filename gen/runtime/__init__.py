"""Runs models on devices and in processes: engines, hosts, signals, and the guard against bad steps."""
