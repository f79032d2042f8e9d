"""The diffusion transformer, DiT (Peebles and Xie 2023): a transformer over patches whose norms depend on a condition.

An example is an array [*axes, channels] with any number of axes: time for sound, row and column for images, frame, row and column
for video.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from gen.axis import shard_examples
from gen.core import Array, Rules
from gen.errors import UserError, check_positive
from gen.networks import transformer
from gen.networks.dtypes import Dtypes, widen
from gen.networks.embedding import sinusoidal
from gen.networks.kernels.normalization import normalize_examples
from gen.networks.layers import Dense
from gen.networks.transformer.blocks import Attention, Visibility
from gen.networks.transformer.layers import FeedForward
from gen.networks.velocity import Architecture, along, modulate

SMALL = nn.initializers.normal(0.02)
"""Initializer of the modulations and of the last layer. It starts each block near the identity, and gives every parameter a gradient.
With zeros, as in the paper, most parameters would have a zero gradient for the first two steps."""


@dataclass(frozen=True)
class DiT(Architecture):
    """The diffusion transformer (Peebles and Xie 2023) over patches of an array."""

    layers: int = 6
    """Number of blocks."""
    width: int = 192
    """Number of channels of each position between the blocks. A multiple of heads."""
    heads: int = 3
    """Number of attention heads."""
    patch: tuple[int, ...] = (4,)
    """Length of a patch on each axis, or one number for all axes. An axis that is not a multiple of it is padded with zeros."""

    def __post_init__(self):
        check_positive(layers=self.layers, **{"the smallest side of patch": min(self.patch, default=0)})
        self.block()

    @property
    def condition(self) -> int:
        return self.width

    @property
    def rules(self) -> Rules:
        return transformer.RULES

    def block(self) -> transformer.Architecture:
        """Returns the sizes of a block's attention and feed-forward layer. Raises: UserError if width is not a multiple of heads."""
        # Queries and keys are normalized, which bounds the attention scores (Dehghani et al. 2023).
        return transformer.Architecture(
            layers=self.layers, width=self.width, heads=self.heads, norm="rms", bias=False, qk_norm=True
        )

    def trunk(self, shape: tuple[int, ...], dtypes: Dtypes) -> nn.Module:
        axes = len(shape) - 1
        if axes < 1 or len(self.patch) not in (1, axes):
            raise UserError(
                f"patch has {len(self.patch)} sides, and an example of shape {shape} has {axes} axes and channels; give one "
                "side for each axis, or one for all"
            )
        return Trunk(self, shape, self.patch * (axes // len(self.patch)), dtypes)

    def tiny(self) -> DiT:
        return replace(self, layers=1, width=8, heads=2)


class Trunk(nn.Module):
    """The layers of a DiT: patches -> blocks -> patches of the output."""

    config: DiT
    shape: tuple[int, ...]
    """Shape (*axes, channels) of an output."""
    patch: tuple[int, ...]
    """Length of a patch on each axis."""
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Returns [B, *shape] for x [B, *axes, C] and conditions [B, width]."""
        grid = tuple(-(-size // side) for size, side in zip(self.shape, self.patch, strict=False))
        width, arch = self.config.width, self.config.block()
        h = Dense(width, name="begin", **self.dtypes)(to_patches(x, self.patch))
        # The sines are computed before the cast, because bfloat16 can't hold all coordinates above 256 exactly.
        h += embed_positions(grid, width, jnp.promote_types(h.dtype, jnp.float32)).astype(h.dtype)[None]
        for i in range(self.config.layers):
            h = Block(arch, self.dtypes, name=f"block_{i}")(shard_examples.get()(h), condition)
        layer = Dense(2 * width, kernel_init=SMALL, name="end_modulation", **self.dtypes)
        h = modulate(normalize(h), *jnp.split(layer(condition), 2, axis=-1))
        outputs = math.prod(self.patch) * self.shape[-1]
        patches = Dense(outputs, kernel_init=SMALL, name="end", **self.dtypes)(h)
        return from_patches(patches, self.patch, self.shape)


class Block(nn.Module):
    """Computes x + g attention(norm(x)), then x + g feed_forward(norm(x)).

    The gates g, and a scale and a shift of each norm, are linear in the condition.
    """

    arch: transformer.Architecture
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, condition: Array) -> Array:
        """Returns [B, T, D] for x [B, T, D] and conditions [B, D]. Peebles and Xie 2023, figure 3."""
        layer = Dense(6 * self.arch.width, kernel_init=SMALL, name="modulation", **self.dtypes)
        scale, shift, gate, scale_2, shift_2, gate_2 = jnp.split(layer(condition), 6, axis=-1)
        attention = Attention(self.arch, False, self.dtypes, name="attention")
        h, _ = attention(modulate(normalize(x), scale, shift), Visibility())
        x += along(gate, x) * h
        h = FeedForward(self.arch, self.dtypes, name="feed_forward")(modulate(normalize(x), scale_2, shift_2))
        return x + along(gate_2, x) * h


def normalize(x: Array) -> Array:
    """Returns x [..., D] with mean 0 and variance 1 over its last axis, computed in at least float32."""
    whole = widen(x)
    return normalize_examples(whole, jnp.ones(x.shape[-1], whole.dtype), True).astype(x.dtype)


def embed_positions(grid: Sequence[int], width: int, dtype: DTypeLike) -> Array:
    """Returns sines and cosines of the coordinates of each position of a grid, [positions, width] in `dtype`, a float dtype.

    grid: number of positions on each axis. Each axis gets an equal part of the width; channels that are left over
    are 0. Dosovitskiy et al. 2021, appendix D.4.
    """
    part = width // len(grid)
    coordinates = [jnp.asarray(c.reshape(-1), dtype) for c in np.indices(grid)]
    parts = jnp.concatenate([sinusoidal(c, part) for c in coordinates], axis=-1)
    # Channels that can't be divided equally among the axes stay 0.
    return jnp.pad(parts, ((0, 0), (0, width - part * len(grid))))


def to_patches(x: Array, patch: tuple[int, ...]) -> Array:
    """Returns the patches of x [B, *axes, C] in raster order, each flattened: [B, positions, prod(patch) * C].

    patch: length of a patch on each axis. Each axis is padded with zeros to a multiple of the patch length.
    """
    n, channels = len(patch), x.shape[-1]
    missing = [(0, -size % side) for size, side in zip(x.shape[1:-1], patch, strict=True)]
    x = jnp.pad(x, [(0, 0), *missing, (0, 0)])
    # [B, grid 1, side 1, grid 2, side 2, ..., C] -> [B, grid 1, grid 2, ..., side 1, side 2, ..., C]
    split = [part for size, side in zip(x.shape[1:-1], patch, strict=True) for part in (size // side, side)]
    order = (0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)
    return x.reshape(len(x), *split, channels).transpose(order).reshape(len(x), -1, math.prod(patch) * channels)


def from_patches(x: Array, patch: tuple[int, ...], shape: tuple[int, ...]) -> Array:
    """Joins patches [B, positions, prod(patch) * channels] to an array [B, *shape]: the inverse of `to_patches`.

    patch: length of a patch on each axis. shape: (*axes, channels). The padding of `to_patches` is cut off.
    """
    n, (*axes, channels) = len(patch), shape
    grid = [-(-size // side) for size, side in zip(axes, patch, strict=True)]
    # [B, grid 1, grid 2, ..., side 1, side 2, ..., C] -> [B, grid 1, side 1, grid 2, side 2, ..., C]
    order = (0, *(i for pair in zip(range(1, n + 1), range(n + 1, 2 * n + 1), strict=True) for i in pair), 2 * n + 1)
    x = x.reshape(len(x), *grid, *patch, channels).transpose(order)
    x = x.reshape(len(x), *(size * side for size, side in zip(grid, patch, strict=True)), channels)
    return x[(slice(None), *(slice(size) for size in axes))]
