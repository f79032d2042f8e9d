"""The cache of keys and values of attention. With a cache, decoding a token computes only one position instead of the whole text.

Keys and values are stored as [B K, S, H]: B examples with K heads each, S slots (one for each token), H channels of
a head. In this layout, attention from a single position needs no transposed copy of them (see
`gen.networks.attention.attend_cached`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array
from gen.networks.positions import PADDING
from gen.networks.transformer.architecture import Architecture

Stack = Array | tuple[Array, ...]
"""One array for all layers, [L, B K, S, H], or a tuple of L arrays [B K, S, H]."""


class Cache(NamedTuple):
    """Keys and values of all layers, for the tokens that the model has read so far."""

    key: Stack
    value: Stack
    segment: Array
    """int32 [B, S]. Segment of each slot's token (`gen.networks.positions.locate_tokens`); PADDING in empty slots."""
    length: Array
    """int32 []. Number of slots that are filled, out of S. It is the same for all examples, as shorter prompts are padded."""


class KeyValue(NamedTuple):
    """Keys and values: of all layers, [L, B K, S, H] each, or of one layer, [B K, S, H] each."""

    key: Array
    value: Array


class Slot(NamedTuple):
    """The place in the cache where an attention layer writes its new keys and values."""

    layer: Array | int
    """int32 []. Number of the layer: index on the axis L. Ignored if the arrays are of one layer, without this axis."""
    start: Array
    """int32 []. Index on the axis S of the first new token."""


def empty_cache(arch: Architecture, batch: int, slots: int, dtype: DTypeLike, unstacked: bool = False) -> Cache:
    """Returns an empty cache with room for `slots` tokens of each of `batch` examples.

    dtype: of keys and values. unstacked: True gives each layer its own arrays, as parameters from `unstack_layers`
    need. False stacks the layers in one array.
    """
    shape = (batch * (arch.kv_heads or arch.heads), slots, arch.width // arch.heads)
    stack = (jnp.zeros(shape, dtype),) * arch.layers if unstacked else jnp.zeros((arch.layers, *shape), dtype)
    # Empty slots have the segment of padding, so no token attends to them.
    segment = jnp.full((batch, slots), PADDING, jnp.int32)
    return Cache(stack, stack, segment, jnp.zeros((), jnp.int32))


def grow_cache(cache: Cache, more: int) -> Cache:
    """Returns the cache with `more` empty slots at its end."""

    def grow(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)])

    segment = jnp.pad(cache.segment, ((0, 0), (0, more)), constant_values=PADDING)
    key, value = jax.tree.map(grow, (cache.key, cache.value))
    return Cache(key, value, segment, cache.length)


def write_slot(stored: KeyValue, key_BTKH: Array, value_BTKH: Array, slot: Slot) -> KeyValue:
    """Returns `stored` with T new keys and values, [B, T, K, H] each, written from index slot.start on.

    XLA updates the arrays in place if they are the carry of a loop.
    """
    return KeyValue(_write(stored.key, key_BTKH, slot), _write(stored.value, value_BTKH, slot))


def _write(old: Array, new_BTKH: Array, slot: Slot) -> Array:
    # XLA clamps a start that is too large. Callers make sure that all T tokens have room.
    b, t, k, h = new_BTKH.shape
    new, zero = new_BTKH.swapaxes(1, 2).reshape(b * k, t, h).astype(old.dtype), jnp.zeros((), jnp.int32)
    if old.ndim == 4:
        return jax.lax.dynamic_update_slice(old, new[None], (slot.layer, zero, slot.start, zero))
    return jax.lax.dynamic_update_slice(old, new, (zero, slot.start, zero))


def read_layer(stored: KeyValue, slot: Slot) -> KeyValue:
    """Returns the keys and values of layer `slot.layer`, [B K, S, H] each; `stored` itself if it is of one layer."""
    if stored.key.ndim == 3:
        return stored
    return KeyValue(*(jax.lax.dynamic_index_in_dim(x, slot.layer, keepdims=False) for x in stored))
