"""Applies a function to many examples, a chunk of examples at a time, so that the intermediate arrays fit in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from gen.core import Array

Inputs = TypeVar("Inputs")
Outputs = TypeVar("Outputs")


def map_chunks(function: Callable[[Inputs], Outputs], inputs: Inputs, size: int) -> Outputs:
    """Returns `function(inputs)`, computed for `size` examples at a time, which bounds the memory.

    inputs, outputs: pytrees of arrays [N, ...]. The output of an example must not depend on other examples. If N >
    size, the last chunk is padded with examples of zeros, whose outputs are dropped.
    """
    n = jax.tree.leaves(inputs)[0].shape[0]
    if n <= size:
        return function(inputs)

    def split(x: Array) -> Array:
        """Pads [N, ...] with zeros to whole chunks: [chunks, size, ...]."""
        padding = ((0, -n % size), *((0, 0),) * (x.ndim - 1))
        return jnp.pad(x, padding).reshape(-1, size, *x.shape[1:])

    def join(x: Array) -> Array:
        # Joins the chunks, and removes the padding of the last one.
        return x.reshape(-1, *x.shape[2:])[:n]

    return jax.tree.map(join, jax.lax.map(function, jax.tree.map(split, inputs)))
