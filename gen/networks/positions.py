"""Positions of tokens in a transformer: in documents or on a grid, and how the network reads them (rotary, or a bias by distance)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array
from gen.networks.dtypes import Dtypes

PADDING = -1  # segment number of padding, and the token that marks padding in a prompt
PREFIX = -2  # segment number of a trained prefix, which tokens of every segment attend to
ROTARY_BASE = 10_000.0  # the longest wavelength of rotary positions is this times 2 pi. Su et al. 2021, section 3.2.2
BUCKETS = 32  # number of buckets of relative positions. Distances in the same bucket share one bias
MAX_DISTANCE = 128  # relative positions: all distances from here on are in the last bucket


class Location(NamedTuple):
    """The document and the position of each token, int32 [B, T] each."""

    segment: Array
    """Number of the token's document in its row of the batch, or PADDING. Tokens attend only to their own segment."""
    position: Array
    """Index of the token in its document. In a document that began before the row, it counts from the row's start."""


def locate_tokens(tokens_BT: Array, end: int | None) -> Location:
    """Returns the document and the position of each token, int32 [B, T]. Tokens below 0 are padding.

    A document begins at each token `end`, and at the first token after padding. end: None if only padding separates documents.
    """
    index_T = jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None]
    padding_BT = tokens_BT < 0
    begins_BT = jnp.pad(padding_BT[:, :-1], ((0, 0), (1, 0))) & ~padding_BT
    if end is not None:
        begins_BT |= tokens_BT == end
    # Only the latest beginning before a token counts, so a running maximum of the indices finds it.
    start_BT = jax.lax.cummax(jnp.where(begins_BT, index_T, 0), axis=1)
    segment_BT = jnp.cumsum(begins_BT, axis=1, dtype=jnp.int32)
    return Location(jnp.where(padding_BT, PADDING, segment_BT), index_T - start_BT)


def locate_cells(shape: Sequence[int], words: int = 0) -> Array:
    """Returns the coordinates of the tokens of a sequence: caption, label, then the cells of a grid in raster order.

    The result is int32 [words + 1 + T, A], for a grid with A axes and T cells.

    Without a caption, the label is at 0 on every axis, and cells count from 1 on each axis. The tokens of a caption are
    at 0, 1, 2, ... on the first axis, and at 0 on the other axes. They move the label and the cells by `words` on the
    first axis.

    shape: number of cells on each axis. words: number of tokens of the caption; 0: no caption.
    """
    cells_TA = jnp.indices(tuple(shape), jnp.int32).reshape(len(shape), -1).T
    steps_SA = jnp.pad(cells_TA + 1, ((1, 0), (0, 0)))
    if not words:
        return steps_SA
    other = ((0, 0), (0, len(shape) - 1))
    words_WA = jnp.pad(jnp.arange(words, dtype=jnp.int32)[:, None], other)
    return jnp.concatenate([words_WA, steps_SA + jnp.pad(jnp.full((1, 1), words, jnp.int32), other)])


class RelativeBias(nn.Module):
    """A learned bias of the attention scores for each head and bucket of distances. Raffel et al. 2020, section 2.1.

    Half of the buckets hold one short distance each. The ranges of the others grow by a constant factor up to MAX_DISTANCE. If
    the network is not causal, half of all buckets are for later positions.
    """

    heads: int
    causal: bool
    dtypes: Dtypes

    @nn.compact
    def __call__(self, distance_TS: Array) -> Array:
        """Returns the bias [N, T, S] for distances int32 [T, S]: index of the query minus index of the key."""
        buckets, offset = BUCKETS, 0
        if not self.causal:
            buckets //= 2
            offset = jnp.where(distance_TS < 0, buckets, 0)
            distance_TS = jnp.abs(distance_TS)
        near = buckets // 2
        # In a causal network, negative distances belong to hidden keys, so any bucket will do for them.
        distance_TS = jnp.maximum(distance_TS, 0)
        # From 0 at the distance `near` to 1 at MAX_DISTANCE, on a logarithmic scale.
        octave = jnp.log(jnp.maximum(distance_TS, near) / near) / math.log(MAX_DISTANCE / near)
        far = jnp.minimum(near + (octave * (buckets - near)).astype(jnp.int32), buckets - 1)
        table = nn.Embed(BUCKETS, self.heads, embedding_init=nn.initializers.normal(0.02), **self.dtypes)
        return table(jnp.where(distance_TS < near, distance_TS, far) + offset).transpose(2, 0, 1)


def rotations(position_BT: Array, width: int, dtype: DTypeLike) -> Array:
    """Returns cosines and sines for `rotate`, [2, B, T, 1, width / 2]. position: [B, T]. width: H, size of a head."""
    frequency = ROTARY_BASE ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    angle = position_BT.astype(dtype)[..., None, None] * frequency[None, None, None]
    return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def grid_rotations(position_BTA: Array, width: int, dtype: DTypeLike) -> Array:
    """Returns cosines and sines for `rotate`, [2, B, T, 1, width / 2], of positions on a grid, int32 [B, T, A].

    The H / 2 pairs of channels are divided among the A axes. If A does not divide H / 2, the first axes get one pair
    more. A pair rotates by the position on its axis. An axis with P pairs uses the frequencies of a head with P pairs.
    So the product of a query and a key depends only on their distance on each axis. width: H, channels of a head.
    """
    axes, pairs = position_BTA.shape[-1], width // 2
    counts = [pairs // axes + (axis < pairs % axes) for axis in range(axes)]
    parts = [rotations(position_BTA[..., axis], 2 * n, dtype) for axis, n in enumerate(counts)]
    return jnp.concatenate(parts, axis=-1)


def rotate(x_BTNH: Array, rotation: Array) -> Array:
    """Rotates each pair of channels (i, i + H / 2) of x [B, T, N, H] by an angle, in the dtype of x. Su et al. 2021, equation 34.

    rotation: cosines and sines of the angles, from `rotations` or `grid_rotations`.

    The product of a rotated query and a rotated key depends only on the difference of their positions.
    """
    cos, sin = rotation
    a, b = jnp.split(x_BTNH.astype(rotation.dtype), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
