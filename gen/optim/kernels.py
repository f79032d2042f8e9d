"""Kernels as matrices: which of their axes are layers, rows and columns."""

from __future__ import annotations

import re
from typing import NamedTuple

STACKED = re.compile(r"(^|/)layers/")
"""Found in the paths of kernels that are stacked over the layers of a transformer."""


class MatrixAxes(NamedTuple):
    """The axes of a kernel, read as one matrix for each layer."""

    layers: tuple[int, ...]
    """The axis of layers. Empty: the kernel belongs to one layer."""
    rows: tuple[int, ...]
    """The axes of the input."""
    columns: int
    """The axis of the output."""


def matrix_axes(path: str, ndim: int) -> MatrixAxes:
    """Returns the axes of a kernel with at least two axes.

    Kernels are [in, out], or of convolutions [*window, in, out], whose rows are all axes but the last. Below "layers/" in the
    path, kernels of three or more axes are stacked over layers: [L, ..., in, out].
    """
    stacked = 1 if ndim > 2 and STACKED.search(path) else 0
    return MatrixAxes(tuple(range(stacked)), tuple(range(stacked, ndim - 1)), ndim - 1)
