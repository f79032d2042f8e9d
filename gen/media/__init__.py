"""Kinds of samples: how each is shown, written, and given as input."""
