"""Finds the training images nearest to generated images, to show whether a generated image copies a training image."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array, Batch, Dataset
from gen.metrics.images import READ_CHUNK

NEIGHBOURS = 5
"""Number of neighbours of each image."""


class Neighbours(NamedTuple):
    """The nearest training images of N images, nearest first."""

    image: np.ndarray
    """The training images, float32 [N, NEIGHBOURS, H, W, C] in [-1, 1]."""
    index: np.ndarray
    """Their positions in the training split, int32 [N, NEIGHBOURS]."""
    distance: np.ndarray
    """Their Euclidean distances, between pixels in [-1, 1], float32 [N, NEIGHBOURS]."""


def neighbours(data: Dataset, images: np.ndarray) -> Neighbours:
    """Returns the NEIGHBOURS nearest training images of each image, by the Euclidean distance between pixels.

    images: float32 [N, H, W, C] in [-1, 1]. The training split is read twice, READ_CHUNK images at a time: first to find the
    neighbours, then to copy them.
    """
    distance, where = nearest(data, images)
    found = np.zeros((len(images), NEIGHBOURS, *images.shape[1:]), np.float32)

    @jax.jit
    def show(batch: Batch) -> Array:
        return data.preprocess(batch, jax.random.key(0), False)["image"]

    for batch in data.evaluation("train", min(READ_CHUNK, data.sizes["train"])):
        here = np.isin(where, batch["row"][batch["weight"] > 0])
        # The rows of a batch are consecutive, so subtracting the first row gives the index in the batch.
        found[here] = np.asarray(show(jax.device_put(batch)))[where[here] - batch["row"][0]]
    return Neighbours(found, where, distance)


def nearest(data: Dataset, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distances, float32 [N, NEIGHBOURS], and positions, int32 [N, NEIGHBOURS], of the nearest training images.

    images: float32 [N, H, W, C] in [-1, 1]. Distances and positions are as in `Neighbours`.
    """
    queries = jnp.asarray(images).reshape(len(images), -1)
    distance = jnp.full((len(images), NEIGHBOURS), jnp.inf)
    index = jnp.zeros((len(images), NEIGHBOURS), jnp.int32)

    @jax.jit
    def update(distance: Array, index: Array, batch: Batch) -> tuple[Array, Array]:
        """Merges a batch into the nearest neighbours found so far."""
        x = data.preprocess(batch, jax.random.key(0), False)["image"]
        x = x.reshape(x.shape[0], -1)

        def to_batch(query: Array) -> Array:
            # Computed from differences, not as |x|^2 + |q|^2 - 2xq, so that equal images have a distance of exactly 0.
            return jnp.sqrt(jnp.square(x - query[None]).sum(-1))

        # One query at a time: all differences at once would not fit in memory. Padding is never a neighbour.
        between = jax.lax.map(to_batch, queries)
        between = jnp.where(batch["weight"][None] > 0, between, jnp.inf)
        # The nearest images so far and the images of this batch compete for the NEIGHBOURS places.
        distance = jnp.concatenate([distance, between], axis=1)
        index = jnp.concatenate([index, jnp.broadcast_to(batch["row"][None], between.shape)], axis=1)
        nearest, at = jax.lax.top_k(-distance, NEIGHBOURS)
        return -nearest, jnp.take_along_axis(index, at, axis=1)

    size = min(READ_CHUNK, data.sizes["train"])
    for batch in data.evaluation("train", size):
        distance, index = update(distance, index, jax.device_put(batch))
    return np.asarray(distance), np.asarray(index)
