"""Preprocesses images inside the compiled step: from bytes to the floats that a model sees."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Batch, Key
from gen.data.preprocess import scale_levels


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
    """Returns the batch with its "image", uint8 [B, H, W, C] of integers v in [0, levels), as float32 x in [-1, 1].

    The "source" of pairs is scaled without noise, and mirrored if its image is mirrored.

    - By default x = 2 v / (levels - 1) - 1, so the first and the last level are -1 and 1.
    - `dequantize`: x = 2 (v + u) / levels - 1 with u ~ U[0, 1). Each level becomes an interval of width 2 / levels.
    - `binarize`: x = 1 with probability v / (levels - 1), otherwise -1. If "static", the draw depends on the "index" of
      the example alone, so each example always has the same binary image. If "dynamic", it depends on (key, row).
    - `flip`, if `training`: the image is mirrored left to right with probability 1/2. This comes last, so that it
      mirrors the binary image of "static" too.

    Except for "static", random numbers depend on (key, "row") alone. So they are the same however the batch is sharded.
    """
    noise_key, flip_key = jax.random.split(key)
    v = batch["image"].astype(jnp.float32)

    def uniform(key: Key) -> Array:
        return jax.random.uniform(key, v.shape[1:], jnp.float32)

    if dequantize:
        x = scale_levels(v + axis.per_example(uniform, noise_key, batch["row"]), levels)
    elif binarize:
        # "static" uses a fixed key and the position in the split instead of the key of the step and the row.
        static = binarize == "static"
        u = axis.per_example(uniform, jax.random.key(0) if static else noise_key, batch["index" if static else "row"])
        x = jnp.where(u < v / (levels - 1), 1.0, -1.0).astype(jnp.float32)
    else:
        x = scale_levels(v, levels - 1)
    seen = {"image": x}
    if "source" in batch:
        seen["source"] = scale_levels(batch["source"].astype(jnp.float32), levels - 1)
    if flip and training:
        mirrored = axis.per_example(jax.random.bernoulli, flip_key, batch["row"])[:, None, None, None]
        seen = {name: jnp.where(mirrored, x[:, :, ::-1], x) for name, x in seen.items()}
    return {**batch, **seen}
