"""Pictures that people look at."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from gen.core import LAUNCH, Dataset
from gen.data.images.pixels import to_bytes

MIN_SIDE = 28 * 16  # pixels; a smaller grid is enlarged, so that a person sees it
MOST_COLUMNS = 20


@dataclass(frozen=True)
class ImageOptions:
    """What is shown beside the samples."""

    neighbours: bool = False
    """Show the nearest training images beside each sample, which needs the data set."""
    data_dir: str | None = field(default=None, metadata=LAUNCH)
    """Where the data set is, if not where it was in training."""


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """[N, H, W, C] in so many columns (None: a near square), or [rows, columns, H, W, C] as it is -> [height, width, C],
    with a grey line between."""
    if images.ndim == 4:
        columns = columns or math.ceil(math.sqrt(len(images)))
        rows = math.ceil(len(images) / columns)
        blank = np.full((rows * columns - len(images), *images.shape[1:]), 128, images.dtype)
        images = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    spaced = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=128)
    return np.concatenate(np.concatenate(spaced, axis=1), axis=1)[:-1, :-1]


def png(images: np.ndarray, columns: int | None = None) -> bytes:
    """A PNG of a grid of uint8 images, enlarged by a whole factor if it is small."""
    picture = grid(images, columns)
    factor = max(1, MIN_SIDE // max(picture.shape[:2]))
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    content = io.BytesIO()
    Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).save(content, format="PNG")
    return content.getvalue()


def picture(arrays: Mapping[str, Any]) -> bytes:
    """A PNG of what a model generated: "samples", with a column for each class where "labels" has them in turn."""
    labels = np.asarray(arrays.get("labels", []))
    classes = int(labels.max(initial=0)) + 1
    in_turn = 2 < classes <= MOST_COLUMNS and np.array_equal(labels, np.arange(len(labels)) % classes)
    return png(to_bytes(np.asarray(arrays["samples"])), classes if in_turn else None)


def files(arrays: Mapping[str, Any], data: Dataset | None = None) -> dict[str, bytes]:
    """{file name: content} of what a model generated: the picture, and all arrays; with the data set, the nearest training
    images of each sample too."""
    beside = {}
    if data is not None:
        from gen.metrics.neighbours import neighbours

        samples = np.asarray(arrays["samples"]).reshape(-1, *data.spec["image"].shape)
        near = neighbours(data, samples)
        arrays = {**arrays, "neighbour_index": near.index, "neighbour_distance": near.distance}
        beside = {"neighbours.png": png(to_bytes(np.concatenate([samples[:, None], near.image], axis=1)))}
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return {"samples.png": picture(arrays), "samples.npz": content.getvalue()} | beside
