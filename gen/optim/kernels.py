"""Kernels as matrices: which of their axes are layers, rows and columns."""

from __future__ import annotations

import re
from typing import NamedTuple

STACKED = re.compile(r"(^|/)layers/")
"""Matches the paths of parameters that a transformer stacks over its layers, in one array with the layers on axis 0."""


class MatrixAxes(NamedTuple):
    """The axes of a kernel, read as one matrix for each layer."""

    layers: tuple[int, ...]
    """The axis over which kernels of several layers are stacked. (): the kernel belongs to one layer."""
    rows: tuple[int, ...]
    """The axes of the input, which together are the rows of the matrix."""
    columns: int
    """The axis of the output, which is the columns of the matrix."""


def matrix_axes(path: str, ndim: int) -> MatrixAxes:
    """Returns the axes of the kernel at `path`, which has `ndim` axes, at least two.

    A kernel is [in, out], or for a convolution [*window, in, out]: all axes but the last are rows. If the path contains "layers/",
    a kernel of three or more axes is stacked over layers: [L, ..., in, out].
    """
    stacked = 1 if ndim > 2 and STACKED.search(path) else 0
    return MatrixAxes(tuple(range(stacked)), tuple(range(stacked, ndim - 1)), ndim - 1)
