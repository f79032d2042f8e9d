"""Networks for the velocity of a flow. They map an array, two times, a label and a caption to an array with the same axes.

A config chooses the layers with an `Architecture`: `UNet` for images, or `DiT` for arrays with any number of axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array, Params, Rules
from gen.networks.dtypes import Dtypes, widen
from gen.networks.embedding import sinusoidal
from gen.networks.layers import Dense

TIME_FEATURES = 64
"""Number of sines and cosines that embed a time."""
TIME_FREQUENCY = 64.0
"""Largest angular frequency of the embedding of a time in [0, 1]. MeanFlow differentiates the network with respect to time. The usual
frequencies of up to 1000 would make this derivative large, and the training unstable."""


FIRST, LAST, TABLE = "Dense_1", "Dense_0", "Embed_0"
"""Names of layers that compute the condition of a `Velocity`: two dense layers for the times, and the label table."""


@dataclass(frozen=True)
class Architecture:
    """The kind and the sizes of the layers of a velocity network. Subclass it to add a kind."""

    @property
    def condition(self) -> int:
        """Size of the condition vector, which tells the layers the times, the label and the caption."""
        raise NotImplementedError

    @property
    def rules(self) -> Rules:
        """Sharding rules of tensor parallelism: (pattern of a parameter's path, axis to shard)."""
        return ()

    def trunk(self, shape: tuple[int, ...], dtypes: Dtypes) -> nn.Module:
        """Returns the module that maps x [B, *axes, any channels] and conditions [B, self.condition] to an array [B, *shape].

        shape: (*axes, channels) of one example. Raises: UserError if the layers do not suit it.
        """
        raise NotImplementedError

    def tiny(self) -> Architecture:
        """Returns the same architecture with the smallest sizes, for tests."""
        raise NotImplementedError


class Velocity(nn.Module):
    """u(x, r, t | label, caption): the mean velocity from time r to time t of the flow's path that is at x at time t.

    For r = t this is the velocity at time t. Geng et al. 2025 (MeanFlow).
    """

    trunk: nn.Module
    """(x [B, *axes, C], condition vectors [B, width]) -> velocity [B, *axes, C]."""
    width: int
    """Size of the condition vector, a sum of embeddings of the times, the label and the caption."""
    classes: int | None
    """Number of classes. The label `classes` means "no label". None: labels are not read."""
    dtypes: Dtypes
    encoder: nn.Module | None = None
    """Captions int32 [B, L] -> vectors [B, width], zeros for no caption. None: captions are not read."""

    @nn.compact
    def __call__(self, x: Array, r: Array, t: Array, label: Array | None, caption: Array | None = None) -> Array:
        """Returns the velocity, shaped as an example, [B, *axes, C], and at least float32.

        x: [B, *axes, C]; r, t: [B] with 0 <= r <= t <= 1; label: int32 [B] in [0, classes], or None if
        `classes` is None; caption: int32 [B, L], or None without an encoder.
        """
        # The network reads t and t - r, which is better than t and r (Geng et al. 2025, table 1c).
        times = jnp.concatenate([embed_time(t), embed_time(t - r)], axis=-1)
        condition = Dense(self.width, name=LAST, **self.dtypes)(
            nn.silu(Dense(self.width, name=FIRST, **self.dtypes)(times))
        )
        if self.classes is not None:
            condition += nn.Embed(self.classes + 1, self.width, name=TABLE, **self.dtypes)(label)
        if self.encoder is not None:
            condition += self.encoder(caption)
        v = self.trunk(x, nn.silu(condition))
        return widen(v)


def change_classes(params: Params, like: Params) -> Params:
    """Returns the parameters of a `Velocity` for another number of classes, with the same velocities if there is no label.

    Each class of the new embedding table begins with the old vector of "no label", or with zeros if the old network has
    no table. If the new network has no table, this vector is added to the bias of the last dense layer for the times.
    If the numbers of classes are equal, nothing changes. like: parameters of the new network, or their shapes.
    """
    table, wanted = (tree.get(TABLE, {}).get("embedding") for tree in (params, like))
    if table is wanted is None or (table is not None and wanted is not None and len(table) == len(wanted)):
        return params
    others = {name: value for name, value in params.items() if name != TABLE}
    layer = params[LAST]
    # The last row of the table is the vector of "no label".
    none = jnp.zeros_like(layer["bias"]) if table is None else table[-1]
    if wanted is None:
        return {**others, LAST: {**layer, "bias": layer["bias"] + none}}
    return {**others, TABLE: {"embedding": jnp.broadcast_to(none, wanted.shape)}}


def embed_time(t: Array) -> Array:
    """Returns sines and cosines of times [B] in [0, 1], [B, TIME_FEATURES]."""
    # The lowest angular frequency is 1/2, so its period is longer than the interval [0, 1].
    return sinusoidal(TIME_FREQUENCY * t, TIME_FEATURES, max_period=2 * TIME_FREQUENCY)


def modulate(x: Array, scale: Array, shift: Array) -> Array:
    """Returns x (1 + scale) + shift, for x [B, ..., D] and the scale and the shift of each example, [B, D]."""
    return x * (1 + along(scale, x)) + along(shift, x)


def along(y: Array, x: Array) -> Array:
    """Returns y [B, D] with axes of size 1 in the middle, so that it broadcasts to x [B, ..., D]."""
    return y.reshape(len(y), *(1,) * (x.ndim - 2), -1)
