"""Measurements that take too long for tests: speed, memory, and scores of trained models."""
