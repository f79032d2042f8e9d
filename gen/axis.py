"""The mapped axis "data": averages and sums over all devices, and noise that belongs to the example, not to the device.

`fold_in(key, i)` equals `split(key, n)[i]`, bit for bit. So a key that was split is not given to `example_keys` or `per_example`,
nor split or folded again: the noise would be the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from gen.core import Array, Batch, Key, Sums

Tree = TypeVar("Tree")


def mean(tree: Tree) -> Tree:
    """Returns the average of each leaf over the axis "data": the devices under pmap, an axis of size one under jit."""
    return jax.lax.pmean(tree, "data")


def total(tree: Tree) -> Tree:
    """Returns the sum of each leaf over the axis "data"."""
    return jax.lax.psum(tree, "data")


def mean_sums(batch: Batch, values: Mapping[str, Array]) -> Sums:
    """Returns the `Sums` over "data" of metrics that are means over examples, exact under padding and any sharding.

    batch: has "weight" [B], which is 0 on padding. values: {metric: [B] or [B, ...]}, one value or one vector per example.
    Sums are at least float32.
    """

    def weigh(value: Array) -> tuple[Array, Array]:
        dtype = jnp.promote_types(value.dtype, jnp.float32)
        weight = batch["weight"].astype(dtype)
        return jnp.tensordot(weight, value.astype(dtype), axes=1, precision="highest"), weight.sum()

    return total({name: weigh(value) for name, value in values.items()})


def _keep(x: Array) -> Array:
    return x


shard_examples: ContextVar[Callable[[Array], Array]] = ContextVar("shard_examples", default=_keep)
"""Function that keeps activations [B, ...] sharded over devices by example. An engine that shards the state sets it while a
network is traced. Otherwise the compiler may shard activations like the weights, and send activations where sending weights
would be cheaper."""


def example_keys(key: Key, row: Array) -> Key:
    """Returns one key per example, `fold_in(key, row)`: its noise is the same on whichever device it is drawn. Keys [B].

    row: int32 [B], positions in the global batch.
    """
    # jax.random.split(key, B) would give the first example of every device the same key.
    return jax.vmap(partial(jax.random.fold_in, key))(row)


def split_keys(keys: Key, n: int) -> tuple[Key, ...]:
    """Returns n arrays of keys [B] for n independent draws per example, from one key per example [B]."""
    return tuple(jax.vmap(partial(jax.random.split, num=n), out_axes=1)(keys))


def per_example(draw: Callable[[Key], Tree], key: Key, row: Array) -> Tree:
    """Draws noise that belongs to each example, whichever device holds it.

    row: int32 [B], positions in the global batch. Returns `draw` of each of the `example_keys`, stacked: [B, ...].
    """
    return jax.vmap(draw)(example_keys(key, row))
