"""What happens to images in the compiled step: bytes -> what the model sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from gen import core
from gen.core import Batch, GenerativeModel, Key

Transform = Callable[[Batch, Key, bool], Batch]


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
        x = between(v + core.per_example(uniform, noise_key, batch["row"]), levels)
    elif binarize:
        static = binarize == "static"
        u = core.per_example(uniform, jax.random.key(0) if static else noise_key, batch["index" if static else "row"])
        x = jnp.where(u < v / (levels - 1), 1.0, -1.0).astype(jnp.float32)
    else:
        x = between(v, levels - 1)
    if flip and training:
        mirrored = core.per_example(jax.random.bernoulli, flip_key, batch["row"])
        x = jnp.where(mirrored[:, None, None, None], x[:, :, ::-1], x)
    return {**batch, "image": x}


def between(v: core.Array, top: int) -> core.Array:
    """[0, top] -> [-1, 1]. Dividing last keeps the ends inside, however the compiler rounds."""
    return (2 * v - top) / top


def applied(model: GenerativeModel, transform: Transform) -> GenerativeModel:
    """The model whose update, evaluate and test first transform the batch with its own key (see Dataset.preprocess)."""

    def update(state, batch, key):
        data_key, model_key = jax.random.split(key)
        if model.batches is None:
            seen = transform(batch, data_key, True)
        else:
            keys = jax.random.split(data_key, model.batches)
            seen = jax.vmap(lambda batch, key: transform(batch, key, True))(batch, keys)
        return model.update(state, seen, model_key)

    def evaluate(state, batch, key):
        data_key, model_key = jax.random.split(key)
        return model.evaluate(state, transform(batch, data_key, False), model_key)

    def test(state, batch, key):
        data_key, model_key = jax.random.split(key)
        return model.test(state, transform(batch, data_key, False), model_key)

    return model._replace(update=update, evaluate=evaluate, test=test)
