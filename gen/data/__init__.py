"""Data sets, whose batches are pure functions of (seed, step, rows of the batch), and parts to build your own from.

The field `data` of a config is a kind of data, such as gen.data.images.Images or gen.data.text.Text. `from_arrays`
makes a data set of arrays in memory.
"""

from gen.data.arrays import from_arrays
from gen.data.cache import load_or_make
from gen.data.digest import sha256
from gen.data.examples import Examples
from gen.data.order import permute, permute_by_grain

__all__ = ["Examples", "from_arrays", "load_or_make", "permute", "permute_by_grain", "sha256"]
