"""Layer and batch normalization with their gradients as they are on paper, of few sums: what is derived from the formulas by rule has
twice as many."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array
from gen.networks.kernels.sums import over_channels, over_rows, row

EPSILON = 1e-5  # beside a variance


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def by_example(x: Array, scale: Array, centered: bool) -> Array:
    """x [..., D] less its mean over D (if centered) and over its deviation, times the scale [D]. Ba et al. 2016; uncentered, Zhang
    and Sennrich 2019."""
    return _example(x, scale, centered)[0]


def _example(x: Array, scale: Array, centered: bool) -> tuple[Array, tuple[Array, ...]]:
    d = x.shape[-1]
    if centered:
        x -= over_channels(x) / d
    over = jax.lax.rsqrt(over_channels(jnp.square(x)) / d + EPSILON)
    y = x * over
    return y * row(scale, x.ndim), (y, over, scale)


def _example_gradients(centered: bool, residuals: tuple[Array, ...], g: Array) -> tuple[Array, Array]:
    """With p = g y: over (g scale - mean(g scale) - y mean(p scale)) of x, and of the scale the sum of p."""
    y, over, scale = residuals
    d, p = g.shape[-1], g * y
    mean = over_channels(g, scale) / d if centered else jnp.zeros_like(over)
    return over * (g * row(scale, g.ndim) - mean - y * (over_channels(p, scale) / d)), over_rows(p)


by_example.defvjp(_example, _example_gradients)


@jax.custom_vjp
def by_channel(x: Array, scale: Array) -> tuple[Array, Array, Array]:
    """x [B, ..., C] less the mean of each channel over the whole batch, on all devices, and over its deviation, times the scale
    [C]; and that mean and variance, [C], through which no gradient goes. Ioffe and Szegedy 2015."""
    return _channel(x, scale)[0]


def _channel(x: Array, scale: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, ...]]:
    n = x.size // x.shape[-1]
    mean, square = axis.mean((over_rows(x) / n, over_rows(jnp.square(x)) / n))
    variance = jnp.maximum(square - jnp.square(mean), 0)
    over = jax.lax.rsqrt(variance + EPSILON)
    y = (x - row(mean, x.ndim)) * row(over, x.ndim)
    return (y * row(scale, x.ndim), mean, variance), (y, over, scale)


def _channel_gradients(residuals: tuple[Array, ...], gs: tuple[Array, ...]) -> tuple[Array, Array]:
    """With p = g y: over (g scale - mean(g scale) - y mean(p scale)) of x, and of the scale the sum of p."""
    y, over, scale = residuals
    g, *_ = gs
    p = g * y
    n, of_g, of_p = g.size // g.shape[-1], over_rows(g), over_rows(p)
    of_row = partial(row, ndim=g.ndim)
    mean_g, mean_p = map(of_row, axis.mean((of_g * scale / n, of_p * scale / n)))
    return of_row(over) * (g * of_row(scale) - mean_g - y * mean_p), of_p


by_channel.defvjp(_channel, _channel_gradients)
