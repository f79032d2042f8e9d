"""Limits on a network's outputs: the identity in the useful range, and bounded outside of it.

An output that becomes a mean, or the log of a scale, can otherwise grow until one example dominates the loss. Unlike clipping, these
functions have a gradient everywhere, so that an output can come back.
"""

from __future__ import annotations

import jax.numpy as jnp

from gen.core import Array


def limit_above(x: Array, limit: float) -> Array:
    """Returns x where x <= limit, exactly. Larger numbers are mapped smoothly and in order to (limit, 2 limit). limit: positive."""
    above = jnp.maximum(x - limit, 0)
    return jnp.minimum(x, limit) + limit * (above / (limit + above))


def limit_size(x: Array, limit: float) -> Array:
    """Returns x where |x| <= limit, exactly. Larger numbers keep their sign, and their size is mapped to (limit, 2 limit)."""
    return -limit_above(-limit_above(x, limit), limit)
