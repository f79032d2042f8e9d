"""Generative models in JAX: pure functions, explicit state."""

__version__ = "0.1.0"
