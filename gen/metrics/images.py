"""Whole splits of a data set as uint8 images, and their features."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array, Dataset, HostBatch
from gen.data.images.pixels import to_bytes
from gen.errors import UserError
from gen.metrics.features import Features

CHUNK = 1000
BATCH = 100  # images that features are taken of at once: Inception's need 1 GB


class ImageSet(NamedTuple):
    """Images as they are scored, real or not: with 8 bits a channel, as a PNG of them would have."""

    image: np.ndarray
    """uint8 [N, H, W, C]."""
    label: np.ndarray | None
    """int32 [N], if there are labels."""


def read_split(data: Dataset, split: str) -> ImageSet:
    """All of a split in order, as `preprocess` shows it when not training."""
    return _shown(data, data.evaluation(split, min(CHUNK, data.sizes[split])))


def read_training(data: Dataset, n: int) -> ImageSet:
    """The first n training examples of the order that seed 0 shuffles them to. Raises: UserError if there are fewer."""
    if n > data.sizes["train"]:
        raise UserError(f"{n} real training images asked for; the data have {data.sizes['train']}")
    return _shown(data, (data.batch(0, 0, range(i, min(i + CHUNK, n))) for i in range(0, n, CHUNK)))


def extract_features(features: Features, images: np.ndarray) -> tuple[np.ndarray, Any]:
    """Features [N, D], and class probabilities [N, K] or None, of uint8 images [N, H, W, C]."""
    n = len(images)
    rows = (np.minimum(np.arange(i, i + BATCH), n - 1) for i in range(0, n, BATCH))  # the last batch is padded
    vectors, probabilities = zip(*(jax.device_get(features.extract(to_float(images[r]))) for r in rows), strict=True)
    joined = lambda parts: np.concatenate(parts)[:n]
    return joined(vectors), None if probabilities[0] is None else joined(probabilities)


def to_float(images: Any) -> Array:
    """uint8 -> float32 in [-1, 1]."""
    return (2 * jnp.asarray(images, jnp.float32) - 255) / 255


def _shown(data: Dataset, batches: Iterable[HostBatch]) -> ImageSet:
    show = jax.jit(lambda batch: data.preprocess(batch, jax.random.key(0), False)["image"])
    images, labels = [], []
    for batch in batches:
        there = batch["weight"] > 0
        images.append(to_bytes(np.asarray(show(batch)))[there])
        labels.append(batch["label"][there] if "label" in batch else None)
    return ImageSet(np.concatenate(images), np.concatenate(labels) if "label" in data.spec else None)
