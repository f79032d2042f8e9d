"""Flax modules that map arrays to arrays. No module here depends on a loss, an optimizer or a device."""
