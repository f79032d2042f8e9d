"""Soft limits on a network's outputs: the identity up to a limit, and bounded beyond it.

An output that becomes a mean, or the log of a scale, can otherwise grow until one example dominates the loss. Unlike clipping, these
functions have a gradient everywhere, so that an output can come back.
"""

from __future__ import annotations

import jax.numpy as jnp

from gen.core import Array


def limit_above(x: Array, limit: float) -> Array:
    """Returns exactly x where x <= limit. Larger x are mapped to (limit, 2 limit), smoothly and increasing. limit: above 0."""
    above = jnp.maximum(x - limit, 0)
    return jnp.minimum(x, limit) + limit * (above / (limit + above))


def limit_size(x: Array, limit: float) -> Array:
    """Returns exactly x where |x| <= limit. Other x keep their sign, and |x| is mapped to (limit, 2 limit), smoothly and increasing."""
    return -limit_above(-limit_above(x, limit), limit)
