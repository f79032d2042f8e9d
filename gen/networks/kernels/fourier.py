"""Convolutions as products with the matrices of small discrete Fourier transforms (see gen.networks.kernels.convolution)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from gen.core import Array


class Factors(NamedTuple):
    """Matrices u, v, w such that sum(conv(x, k) * g) = sum_r (u x)_r (v k)_r (w g)_r, for one channel and stride 1."""

    image: np.ndarray
    """u, [R, H W]."""
    kernel: np.ndarray
    """v, [R, kh kw]."""
    output: np.ndarray
    """w, [R, H W]."""


@lru_cache
def fourier_factors(sides: tuple[int, int], taps: tuple[int, int], dtype: np.dtype) -> Factors:
    """Returns the factors for images of sides (H, W) and kernels of sides `taps` = (kh, kw), in this dtype.

    The trilinear form sum(conv(x, k) * g) is the mean of X K G over frequencies, where X is the transform of x, and K
    and G are the transforms of the mirrored k and g. Opposite frequencies are conjugate, so one of the two is enough,
    counted twice. Re(X K G) is the sum of three real products. Each kept frequency gives three of the R rows, one for
    each product:

    (Re X + Im X) Re K (Re G - Im G),  Re X (Im K - Re K) (-Im G),  Im X (Re K + Im K) (-Re G).
    """
    # Periods long enough that the circular convolution of the transforms does not wrap around into the image.
    n = np.array(periods(sides, taps))
    frequency = _grid(n)
    opposite = -frequency % n
    # Of two opposite frequencies, the one that comes first in raster order is kept.
    kept = frequency @ (n[1], 1) <= opposite @ (n[1], 1)
    # Frequencies that are their own opposite count once.
    real = (frequency == opposite).all(1)

    def wave(position: np.ndarray) -> NDArray[np.complex128]:
        return np.exp(-2j * np.pi * (frequency[kept] / n) @ position.T)

    x, k, g = wave(_grid(sides)), wave((np.array(taps) - 1) // 2 - _grid(taps)), wave(-_grid(sides))
    # The mean over all frequencies, as a sum over the kept ones.
    g *= np.where(real[kept], 1, 2)[:, None] / n.prod()
    # The three real products, one under the other.
    u = np.concatenate([x.real + x.imag, x.real, x.imag])
    v = np.concatenate([k.real, k.imag - k.real, k.imag + k.real])
    w = np.concatenate([g.real - g.imag, -g.imag, -g.real])
    return Factors(u.astype(dtype), v.astype(dtype), w.astype(dtype))


def _grid(shape: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the indices of all elements of an array of this shape, [elements, 2]."""
    return np.moveaxis(np.indices(tuple(shape)), 0, -1).reshape(-1, 2)


def periods(sides: Sequence[int], taps: Sequence[int]) -> list[int]:
    """Returns the period of the transform on each axis: side + tap // 2, so that convolutions do not wrap around."""
    return [side + tap // 2 for side, tap in zip(sides, taps, strict=True)]


def flatten_sides(a: Array) -> Array:
    """Joins the first two axes: [H, W, ...] -> [H * W, ...]."""
    return a.reshape(-1, *a.shape[2:])


def transform(m: np.ndarray, x: Array) -> Array:
    """Transforms each channel of each image by a matrix m of `Factors`: m [R, H W], x [B, H, W, C] -> [R, B, C]."""
    return jnp.tensordot(m, flatten_sides(x.transpose(1, 2, 0, 3)), 1)


def inverse_transform(m: np.ndarray, x: Array, sides: tuple[int, ...]) -> Array:
    """Applies the adjoint of `transform`: m [R, H W], x [R, B, C] -> [B, H, W, C]. sides: (H, W)."""
    return jnp.tensordot(m.T, x, 1).reshape(*sides, *x.shape[1:]).transpose(2, 0, 1, 3)
