"""Reads splits of a data set as uint8 images, and extracts features of images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gen.core import Array, Batch, Dataset, HostBatch, Spec
from gen.data.images.pixels import to_bytes
from gen.errors import UserError
from gen.metrics.features import Features

READ_CHUNK = 1000
"""Number of images that are read from a split at a time."""
FACTS = {"label", "caption", "group"}
"""Arrays of a batch that an `ImageSet` keeps besides the images."""
FEATURE_CHUNK = 100
"""Number of images per call of a feature extractor. Inception needs 1 GB of memory for 100 images."""


class ImageSet(NamedTuple):
    """Real or generated images, with 8 bits per channel as in PNG files, and their labels, captions and sources."""

    image: np.ndarray
    """The images, uint8 [N, H, W, C]."""
    label: np.ndarray | None = None
    """Class of each image, int32 [N]. None: no labels."""
    caption: np.ndarray | None = None
    """Tokens of the caption of each image, int32 [N, L]. None: no captions."""
    source: np.ndarray | None = None
    """For pairs: the image that is translated into `image`, uint8 [N, H, W, C]. None: the data are not pairs."""
    group: np.ndarray | None = None
    """Number of each image's group, int32 [N]. Variants of an image have the same number. None: no captions."""


def has_sources(spec: Spec) -> bool:
    """Returns whether the data are pairs: each image has a source that is an image too."""
    return "source" in spec and len(spec["source"].shape) == len(spec["image"].shape)


def read_split(data: Dataset, split: str) -> ImageSet:
    """Returns all images of a split in order, after the preprocessing of evaluation (without random flips)."""
    return _preprocess(data, data.evaluation(split, min(READ_CHUNK, data.sizes[split])))


def read_training(data: Dataset, n: int) -> ImageSet:
    """Returns n training examples: the first n in the shuffled order in which training with seed 0 reads them.

    Raises: UserError if the training split has fewer than n examples.
    """
    if n > data.sizes["train"]:
        raise UserError(
            f"{n} real training images are needed, and the data have {data.sizes['train']}; use a smaller n"
        )
    # Read in chunks, so that the float32 images of a whole split are never in memory.
    ranges = (range(i, min(i + READ_CHUNK, n)) for i in range(0, n, READ_CHUNK))
    return _preprocess(data, (data.batch(0, 0, rows) for rows in ranges))


def extract_features(features: Features, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns features [N, D], and class probabilities [N, K] or None, of uint8 images [N, H, W, C]."""
    n = len(images)
    vectors: list[np.ndarray] = []
    probabilities: list[np.ndarray] = []
    for start in range(0, n, FEATURE_CHUNK):
        # The last chunk is filled up with copies of the last image, so that all chunks have the same shape and compile once.
        rows = np.minimum(np.arange(start, start + FEATURE_CHUNK), n - 1)
        vector, probability = jax.device_get(features.extract(to_float(images[rows])))
        vectors.append(vector)
        if probability is not None:
            probabilities.append(probability)
    return _concatenate(vectors, n), _concatenate(probabilities, n) if probabilities else None


def to_float(images: ArrayLike) -> Array:
    """Returns uint8 images as float32 in [-1, 1]."""
    return (2 * jnp.asarray(images, jnp.float32) - 255) / 255


def _concatenate(chunks: Sequence[np.ndarray], n: int) -> np.ndarray:
    """Concatenates chunks and cuts off the padding of the last one."""
    return np.concatenate(chunks)[:n]


def _preprocess(data: Dataset, batches: Iterable[HostBatch]) -> ImageSet:
    names = ("image", "source") if has_sources(data.spec) else ("image",)

    @jax.jit
    def show(batch: Batch) -> dict[str, Array]:
        # A fixed key, so that random preprocessing, such as noise, is the same at each reading.
        seen = data.preprocess(batch, jax.random.key(0), False)
        return {name: seen[name] for name in names}

    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for batch in batches:
        # Padding has weight 0.
        real = batch["weight"] > 0
        for name, x in show(jax.device_put(batch)).items():
            found[name].append(to_bytes(np.asarray(x))[real])
        for name in FACTS & batch.keys():
            found[name].append(batch[name][real])
    return ImageSet(**{name: np.concatenate(chunks) for name, chunks in found.items()})
