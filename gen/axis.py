"""The mapped axis "data": averages and sums over all devices, and noise that belongs to the example, not to the device."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax

from gen.core import Array, Key


def mean(tree: Any) -> Any:
    """Returns the average of each leaf over the axis "data": the devices under pmap, an axis of size one under jit."""
    return jax.lax.pmean(tree, "data")


def total(tree: Any) -> Any:
    """Returns the sum of each leaf over the axis "data"."""
    return jax.lax.psum(tree, "data")


shard_examples: ContextVar[Callable[[Array], Array]] = ContextVar("shard_examples", default=lambda x: x)
"""Function that keeps activations [B, ...] sharded over devices by example. An engine that shards the state sets it while a
network is traced. Otherwise the compiler may shard activations like the weights, and send activations where sending weights
would be cheaper."""


def per_example(draw: Callable[[Key], Any], key: Key, row: Array) -> Any:
    """Draws noise that belongs to each example, whichever device holds it.

    row: int32 [B], positions in the global batch. Returns `draw(fold_in(key, r))` for each row r, stacked: [B, ...].
    """
    return jax.vmap(lambda r: draw(jax.random.fold_in(key, r)))(row)
