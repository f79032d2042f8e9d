"""The mapped axis "data": averages and sums over all devices, and noise that belongs to the example, not to the device.

Use a key only once. `fold_in(key, i)` equals `split(key, n)[i]`, bit for bit. So if a key was split, do not split or fold it again,
and do not give it to `example_keys` or `per_example`: draws that should be independent would be equal.
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
    """Returns the average of each leaf over the axis "data".

    With the engine pmap, the axis has one index per device. With the engine jit, its size is 1, so the tree is returned
    unchanged.
    """
    return jax.lax.pmean(tree, "data")


def total(tree: Tree) -> Tree:
    """Returns the sum of each leaf over the axis "data"."""
    return jax.lax.psum(tree, "data")


def mean_sums(batch: Batch, values: Mapping[str, Array]) -> Sums:
    """Returns {metric: (total, weight)} over the examples of all devices: total / weight is the mean without padding.

    batch: must have "weight" [B], which is 0 for padding. values: {metric: [B] or [B, ...]}, a value or an array per
    example. A total is [] or [...], the sum of the values times the weights. A weight is [], the sum of the weights.
    Both are at least float32.
    """

    def weigh(value: Array) -> tuple[Array, Array]:
        dtype = jnp.promote_types(value.dtype, jnp.float32)
        weight = batch["weight"].astype(dtype)
        # Accelerators would otherwise round the factors to bfloat16 or TF32.
        return jnp.tensordot(weight, value.astype(dtype), axes=1, precision="highest"), weight.sum()

    return total({name: weigh(value) for name, value in values.items()})


def _keep(x: Array) -> Array:
    return x


shard_examples: ContextVar[Callable[[Array], Array]] = ContextVar("shard_examples", default=_keep)
"""Function that keeps activations [B, ...] sharded over devices by example. By default it returns them unchanged. An engine that
shards the state sets another function while it traces a network. Otherwise the compiler might shard activations like the weights,
and send activations where sending weights would be cheaper."""


def example_keys(key: Key, row: Array) -> Key:
    """Returns one key per example, [B]: `fold_in(key, row)`. So the noise of an example does not depend on its device.

    row: int32 [B], positions of the examples in the global batch.
    """
    # jax.random.split(key, B) would give the first example of every device the same key.
    return jax.vmap(partial(jax.random.fold_in, key))(row)


def split_keys(keys: Key, n: int) -> tuple[Key, ...]:
    """Returns n arrays of keys [B] for n independent draws per example, from one key per example [B]."""
    return tuple(jax.vmap(partial(jax.random.split, num=n), out_axes=1)(keys))


def per_example(draw: Callable[[Key], Tree], key: Key, row: Array) -> Tree:
    """Calls `draw` with one key for each example, and returns the results stacked: [B, ...].

    The keys are `example_keys(key, row)`, so the noise of an example does not depend on its device.

    row: int32 [B], positions of the examples in the global batch.
    """
    return jax.vmap(draw)(example_keys(key, row))
