"""How a transformer knows where a token is: documents and places in a row, rotary positions, and a bias by distance."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.core import Array

PADDING = -1  # the segment of what is no part of any document
PREFIX = -2  # the segment of what every document sees
ROTATIONS = 10_000.0  # the longest wave of rotary positions, in places over 2 pi
BUCKETS, FARTHEST = 32, 128  # of relative positions


def places(tokens_BT: Array, end: int | None) -> tuple[Array, Array]:
    """(segment, position), int32 [B, T]: the number of the document in its row, which begins with the token `end`, and the
    place in that document, or in the part of one that the row begins with. Tokens below 0 are padding."""
    index_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    padding_BT = tokens_BT < 0
    begins_BT = jnp.pad(padding_BT[:, :-1], ((0, 0), (1, 0))) & ~padding_BT
    if end is not None:
        begins_BT |= tokens_BT == end
    start_BT = jax.lax.cummax(jnp.where(begins_BT, index_T, 0), axis=1)
    segment_BT = jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
    return jnp.where(padding_BT, PADDING, segment_BT), index_T - start_BT


class RelativeBias(nn.Module):
    """A learned number for each head and bucket of distances: one a distance while they are short, then ever wider ones.
    Raffel et al. 2020, section 2.1."""

    heads: int
    causal: bool
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, distance_TS: Array) -> Array:
        """Places from key to query -> [N, T, S]."""
        buckets, offset = BUCKETS, 0
        if not self.causal:
            buckets //= 2
            offset = jnp.where(distance_TS < 0, buckets, 0)
            distance_TS = jnp.abs(distance_TS)
        near = buckets // 2
        distance_TS = jnp.maximum(distance_TS, 0)
        octave = jnp.log(jnp.maximum(distance_TS, near) / near) / math.log(FARTHEST / near)
        far = jnp.minimum(near + (octave * (buckets - near)).astype(jnp.int32), buckets - 1)
        table = nn.Embed(BUCKETS, self.heads, embedding_init=nn.initializers.normal(0.02), **self.dtypes)
        return table(jnp.where(distance_TS < near, distance_TS, far) + offset).transpose(2, 0, 1)


def rotations(index_BT: Array, width: int, dtype: Any) -> Array:
    """The cosines and the sines [2, B, T, 1, width / 2] of the angle of each pair of channels of any head at a place."""
    frequency = ROTATIONS ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angle = index_BT.astype(dtype)[..., None, None] * frequency[None, None, None]
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def rotate(x_BTNH: Array, rotation: Array) -> Array:
    """Turn the pairs (i, i + H / 2) of channels by the angles of their place. Su et al. 2021, equation 34."""
    cos, sin = rotation
    a, b = jnp.split(x_BTNH.astype(rotation.dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
