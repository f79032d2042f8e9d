"""Embeddings of numbers, such as the time of a diffusion or flow model, as vectors that a network can read."""

from __future__ import annotations

import math

import jax.numpy as jnp

from gen.core import Array


def sinusoidal(x: Array, width: int, max_period: float = 10_000.0) -> Array:
    """Returns sines, then cosines, of x [...] at width // 2 frequencies: [..., width] in the dtype of x, a float dtype.

    Angular frequencies fall geometrically from 1 to 1 / max_period. Multiply times in [0, 1] by about 1000 first: at the highest
    frequency, 1, they would otherwise all look alike. With an odd width the last number is 0. Vaswani et al. 2017, section 3.5,
    in the arrangement of Ho et al. 2020.
    """
    half = width // 2
    # max(..., 1): a width of 2 or 3 has the frequency 1 alone.
    frequency = jnp.exp(-math.log(max_period) / max(half - 1, 1) * jnp.arange(half, dtype=x.dtype))
    angle = x[..., None] * frequency.reshape((1,) * x.ndim + (half,))
    # The arrangement of Ho et al. 2020 has all sines first. In Vaswani et al. 2017, sines and cosines alternate.
    waves = [jnp.sin(angle), jnp.cos(angle)]
    odd = [jnp.zeros((*x.shape, 1), x.dtype)] if width % 2 else []
    return jnp.concatenate(waves + odd, axis=-1)
