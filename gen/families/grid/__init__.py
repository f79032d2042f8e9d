"""Grids of tokens, such as images: a causal and a masked transformer over the cells of a grid, with or without labels."""

from gen.families.grid.lm import GridLM
from gen.families.grid.mlm import GridMLM

__all__ = ["GridLM", "GridMLM"]
