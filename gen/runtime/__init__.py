"""Devices and processes: engines, hosts, signals, faults."""
