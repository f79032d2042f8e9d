"""Flax modules: arrays in, arrays out. They know no loss, optimizer or device."""
