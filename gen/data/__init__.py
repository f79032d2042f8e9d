"""Data sets as pure functions of (seed, step, row), and the parts that a fork builds its own data sets from.

gen.data.images.Images and gen.data.text.Text are the kinds that a config names. `from_arrays` makes a data set of arrays.
"""

from gen.data.arrays import from_arrays
from gen.data.cache import load_or_make
from gen.data.digest import sha256
from gen.data.examples import Examples
from gen.data.order import permute, permute_by_grain

__all__ = ["Examples", "from_arrays", "load_or_make", "permute", "permute_by_grain", "sha256"]
