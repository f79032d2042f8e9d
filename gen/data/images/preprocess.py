"""What happens to images in the compiled step: bytes -> what the model sees."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from gen import axis, core
from gen.core import Batch, Key


def preprocess(
    batch: Batch,
    key: Key,
    training: bool,
    *,
    levels: int,
    flip: bool,
    dequantize: bool,
    binarize: Literal["static", "dynamic"] | None,
) -> Batch:
    """The batch with its "image", integers v in [0, levels), uint8 [B, H, W, C], as float32 in [-1, 1]. In this order:

    - plain: 2 v / (levels - 1) - 1, so that the first and the last level are -1 and 1;
    - or `dequantize`: 2 (v + u) / levels - 1 with u ~ U[0, 1): levels are bins of width 2 / levels that fill [-1, 1];
    - or `binarize`: 1 with probability v / (levels - 1), else -1. "static": the draw depends on the example's "index"
      alone, so that each has one binary image for good. "dynamic": on (key, row);
    - `flip`, if `training`: mirrored left to right with probability 1/2. Last, so that it mirrors a static image too.

    Noise belongs to (key, "row"), so any sharding of the batch draws the same.
    """
    noise_key, flip_key = jax.random.split(key)
    v = batch["image"].astype(jnp.float32)

    def uniform(key: Key) -> core.Array:
        return jax.random.uniform(key, v.shape[1:], jnp.float32)

    if dequantize:
        x = between(v + axis.per_example(uniform, noise_key, batch["row"]), levels)
    elif binarize:
        static = binarize == "static"
        u = axis.per_example(uniform, jax.random.key(0) if static else noise_key, batch["index" if static else "row"])
        x = jnp.where(u < v / (levels - 1), 1.0, -1.0).astype(jnp.float32)
    else:
        x = between(v, levels - 1)
    if flip and training:
        mirrored = axis.per_example(jax.random.bernoulli, flip_key, batch["row"])
        x = jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
    return {**batch, "image": x}


def between(v: core.Array, top: int) -> core.Array:
    """[0, top] -> [-1, 1]. Dividing last keeps the ends inside, however the compiler rounds."""
    return (2 * v - top) / top
