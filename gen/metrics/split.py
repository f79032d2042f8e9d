"""Whole splits of a data set: the sums of a model's metrics over one, its images as bytes, and their features."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array, Dataset, GenerativeModel, HostBatch, State, Sums, UserError
from gen.metrics.features import Features
from gen.pictures import to_bytes

CHUNK = 1000
BATCH = 100  # images that features are taken of at once: Inception's need 1 GB


class Images(NamedTuple):
    """Images as they are scored, real or not: with 8 bits a channel, as a PNG of them would have."""

    image: np.ndarray
    """uint8 [N, H, W, C]."""
    label: np.ndarray | None
    """int32 [N], if there are labels."""


def measured(
    model: GenerativeModel,
    compiled: Callable[[State, HostBatch], Sums],
    state: State,
    batches: Iterable[HostBatch],
    each: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """The metrics of `batches` by an engine's `evaluate` or `test`: sums of the batches, added in float64, then one division.
    `each` is called a batch."""
    sums: dict[str, tuple[Any, Any]] = {}
    for batch in batches:
        for name, (total, count) in jax.device_get(compiled(state, batch)).items():
            before = sums.get(name, (0.0, 0.0))
            sums[name] = (before[0] + np.asarray(total, np.float64), before[1] + np.asarray(count, np.float64))
        each()
    return model.summarize(sums)


def facts(data: Dataset, split: str) -> dict[str, Any]:
    """The protocol of a number that is measured on a whole split: what is said of the data."""
    return {"split": split, "n": data.sizes[split], "data": data.digest, **data.protocol}


def whole(data: Dataset, split: str) -> Images:
    """All of a split in order, as `preprocess` shows it when not training."""
    return _shown(data, data.evaluation(split, min(CHUNK, data.sizes[split])))


def training(data: Dataset, n: int) -> Images:
    """The first n training examples of the order that seed 0 shuffles them to. Raises: UserError if there are fewer."""
    if n > data.sizes["train"]:
        raise UserError(f"{n} real training images asked for; the data have {data.sizes['train']}")
    return _shown(data, (data.batch(0, 0, range(i, min(i + CHUNK, n))) for i in range(0, n, CHUNK)))


def extracted(features: Features, images: np.ndarray) -> tuple[np.ndarray, Any]:
    """Features [N, D], and class probabilities [N, K] or None, of uint8 images [N, H, W, C]."""
    n = len(images)
    rows = (np.minimum(np.arange(i, i + BATCH), n - 1) for i in range(0, n, BATCH))  # the last batch is padded
    vectors, probabilities = zip(*(jax.device_get(features.extract(seen(images[r]))) for r in rows), strict=True)
    joined = lambda parts: np.concatenate(parts)[:n]
    return joined(vectors), None if probabilities[0] is None else joined(probabilities)


def seen(images: Any) -> Array:
    """uint8 -> float32 in [-1, 1]."""
    return (2 * jnp.asarray(images, jnp.float32) - 255) / 255


def _shown(data: Dataset, batches: Iterable[HostBatch]) -> Images:
    show = jax.jit(lambda batch: data.preprocess(batch, jax.random.key(0), False)["image"])
    images, labels = [], []
    for batch in batches:
        there = batch["weight"] > 0
        images.append(to_bytes(np.asarray(show(batch)))[there])
        labels.append(batch["label"][there] if "label" in batch else None)
    return Images(np.concatenate(images), np.concatenate(labels) if "label" in data.spec else None)
