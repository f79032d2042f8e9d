"""Networks, as Flax modules that map arrays to arrays, and the functions that they use. No losses and no optimizers."""
