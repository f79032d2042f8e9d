"""How good samples are: arrays in, numbers out."""
