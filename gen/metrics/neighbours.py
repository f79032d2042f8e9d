"""The training images nearest to generated ones: what a model has learned by heart shows beside its source."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Dataset
from gen.metrics.images import CHUNK

COUNT = 5


class Neighbours(NamedTuple):
    image: np.ndarray
    """float32 [N, COUNT, H, W, C] in [-1, 1], nearest first."""
    index: np.ndarray
    """int32 [N, COUNT]: their positions in the training split."""
    distance: np.ndarray
    """float32 [N, COUNT]: Euclidean, between pixels in [-1, 1]."""


def neighbours(data: Dataset, images: np.ndarray) -> Neighbours:
    """The COUNT nearest training images of each of images, float32 [N, H, W, C] in [-1, 1]. The split is read once, in chunks."""
    queries = jnp.asarray(images).reshape(len(images), -1)
    best_distance = jnp.full((len(images), COUNT), jnp.inf)
    best_index = jnp.zeros((len(images), COUNT), jnp.int32)

    @jax.jit
    def nearer(distance, index, batch):
        x = data.preprocess(batch, jax.random.key(0), False)["image"]
        x = x.reshape(x.shape[0], -1)
        between = jax.lax.map(
            lambda q: jnp.sqrt(jnp.square(x - q[None]).sum(-1)), queries
        )  # exact: equal images are at 0
        between = jnp.where(batch["weight"][None] > 0, between, jnp.inf)
        distance = jnp.concatenate([distance, between], axis=1)
        index = jnp.concatenate([index, jnp.broadcast_to(batch["row"][None], between.shape)], axis=1)
        nearest, at = jax.lax.top_k(-distance, COUNT)
        return -nearest, jnp.take_along_axis(index, at, axis=1)

    size = min(CHUNK, data.sizes["train"])
    for batch in data.evaluation("train", size):
        best_distance, best_index = nearer(best_distance, best_index, batch)

    index, found = np.asarray(best_index), np.zeros((len(images), COUNT, *images.shape[1:]), np.float32)
    show = jax.jit(lambda batch: data.preprocess(batch, jax.random.key(0), False)["image"])
    for batch in data.evaluation("train", size):
        at = np.isin(index, batch["row"][batch["weight"] > 0])
        found[at] = np.asarray(show(batch))[index[at] - batch["row"][0]]
    return Neighbours(found, index, np.asarray(best_distance))
