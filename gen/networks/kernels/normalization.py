"""Layer and batch normalization, with gradients in closed form. They need half as many sums as the gradients that JAX derives.

Plain: (x - mean(x)) / sqrt(var(x) + EPSILON) * scale. Sums are products on a CPU (gen.networks.kernels.sums).
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array
from gen.networks.kernels.sums import as_row, sum_channels, sum_rows

EPSILON = 1e-5  # added to a variance


def normalize_examples(x: Array, scale: Array, centered: bool) -> Array:
    """Returns x [..., D] normalized over its last axis, times the scale [D].

    centered: subtract the mean and divide by the standard deviation (LayerNorm, Ba et al. 2016). Otherwise divide by the root
    mean square (RMSNorm, Zhang and Sennrich 2019).
    """
    return _normalize_examples(x, scale, centered)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _normalize_examples(x: Array, scale: Array, centered: bool) -> Array:
    return _example_forward(x, scale, centered)[0]


def _example_forward(x: Array, scale: Array, centered: bool) -> tuple[Array, tuple[Array, ...]]:
    d = x.shape[-1]
    # Centred before squaring: E x^2 - (E x)^2 would lose digits where the mean is large.
    if centered:
        x -= sum_channels(x) / d
    inverse = jax.lax.rsqrt(sum_channels(jnp.square(x)) / d + EPSILON)
    y = x * inverse
    return y * as_row(scale, x.ndim), (y, inverse, scale)


def _example_backward(centered: bool, kept: tuple[Array, ...], g: Array) -> tuple[Array, Array]:
    """Returns (dx, dscale), given the gradient g of the output. y: x normalized, before the scale.

    With p = g y: dx = (g scale - mean(g scale) - y mean(p scale)) / deviation, and dscale is the sum of p over all axes
    but the last. Means are over the last axis. For RMSNorm, mean(g scale) is replaced by 0.
    """
    y, inverse, scale = kept
    d, p = g.shape[-1], g * y
    mean = sum_channels(g, scale) / d if centered else jnp.zeros_like(inverse)
    return inverse * (g * as_row(scale, g.ndim) - mean - y * (sum_channels(p, scale) / d)), sum_rows(p)


_normalize_examples.defvjp(_example_forward, _example_backward)


@jax.custom_vjp
def normalize_channels(x: Array, scale: Array) -> tuple[Array, Array, Array]:
    """Returns (y, mean [C], variance [C]), where y is x [B, ..., C] normalized over all axes but the last, times the scale [C].

    Batch normalization (Ioffe and Szegedy 2015) over the global batch: it must run under the mapped axis "data". No
    gradient flows through the returned mean and variance.
    """
    return _channel_forward(x, scale)[0]


def _channel_forward(x: Array, scale: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    n = x.size // x.shape[-1]
    # Both moments in one exchange between devices.
    mean, square = axis.mean((sum_rows(x) / n, sum_rows(jnp.square(x)) / n))
    # Rounding may make the difference negative.
    variance = jnp.maximum(square - jnp.square(mean), 0)
    inverse = jax.lax.rsqrt(variance + EPSILON)
    y = (x - as_row(mean, x.ndim)) * as_row(inverse, x.ndim)
    return (y * as_row(scale, x.ndim), mean, variance), (y, inverse, scale)


def _channel_backward(kept: tuple[Array, ...], gs: tuple[Array, ...]) -> tuple[Array, Array]:
    """Returns (dx, dscale), given the gradient g of the first output. y: x normalized, before the scale.

    With p = g y: dx = (g scale - mean(g scale) - y mean(p scale)) / deviation, and dscale is the sum of p over all axes
    but the last. Means are over these axes and over all devices; dscale is of this device only.
    """
    y, inverse, scale = kept
    g, *_ = gs
    p = g * y
    n, sum_g, sum_p = g.size // g.shape[-1], sum_rows(g), sum_rows(p)
    # The batch's statistics depend on all devices' examples, so the means of the gradient are over all devices too.
    row = partial(as_row, ndim=g.ndim)
    mean_g, mean_p = map(row, axis.mean((sum_g * scale / n, sum_p * scale / n)))
    return row(inverse) * (g * row(scale) - mean_g - y * mean_p), sum_p


normalize_channels.defvjp(_channel_forward, _channel_backward)
