"""The mapped axis "data": averages and sums over all devices, and noise that belongs to the example, not to the device."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax

from gen.core import Array, Key


def mean(tree: Any) -> Any:
    """Average over the mapped axis "data": the devices under pmap, an axis of size one under jit."""
    return jax.lax.pmean(tree, "data")


def total(tree: Any) -> Any:
    """Sum over the mapped axis "data"."""
    return jax.lax.psum(tree, "data")


shard_examples: ContextVar[Callable[[Array], Array]] = ContextVar("spread", default=lambda x: x)
"""Keeps activations [B, ...] spread over devices by their examples: an engine that shards the state sets it while a network
is traced. Without, the compiler may as well spread them as the weights are, and send activations where weights are smaller."""


def per_example(draw: Callable[[Key], Any], key: Key, row: Array) -> Any:
    """`draw(key of the row)` for each row [B] -> [B, ...]: noise belongs to the example, whatever device holds it."""
    return jax.vmap(lambda r: draw(jax.random.fold_in(key, r)))(row)
