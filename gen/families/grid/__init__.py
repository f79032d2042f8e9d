"""Models of grids of tokens, such as images: a causal and a masked transformer over the cells of a grid.

Both may be conditioned on labels and captions.
"""

from gen.families.grid.lm import GridLM
from gen.families.grid.mlm import GridMLM

__all__ = ["GridLM", "GridMLM"]
