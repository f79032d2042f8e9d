"""Images: grids of samples as PNG files, and the nearest training images next to them."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from PIL import Image

from gen.core import LAUNCH, Medium, RunView, Shown
from gen.data.images.pixels import to_bytes

# Pixels of the longer side. A smaller grid is enlarged, so that its details can be seen.
MIN_SIDE = 28 * 16
# Classes that get a column each. With more of them the columns would be too short to compare.
MAX_COLUMNS = 20
GREY = 128


@dataclass(frozen=True)
class ImageOptions:
    """Comparisons that are shown next to the samples."""

    neighbours: bool = False
    """Show the nearest training images next to each sample. Needs the data set."""
    data_dir: str | None = field(default=None, metadata=LAUNCH)
    """Where the data set is now, if it was moved since training."""


@dataclass(frozen=True)
class Images(Medium):
    """Images float32 [n, height, width, channels] in [-1, 1]."""

    features: ClassVar[Mapping[str, int]] = {"image": 3, "label": 0}
    options: ClassVar[type] = ImageOptions

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: ImageOptions | None = None) -> Shown:
        """Returns samples.png, a grid. With options.neighbours: neighbours.png too, and the indices and distances."""
        files = {"samples.png": picture(samples)}
        if options is None or not options.neighbours:
            return Shown(files)
        # Imported here, since it compiles programs: other commands start faster without it.
        from gen.metrics.neighbours import neighbours

        images = np.asarray(samples["samples"]).reshape(-1, *run.spec["image"].shape)
        near = neighbours(run.build_data(options.data_dir), images)
        files["neighbours.png"] = png(to_bytes(np.concatenate([images[:, None], near.image], axis=1)))
        return Shown(files, {"neighbour_index": near.index, "neighbour_distance": near.distance})


IMAGE = Images()


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Returns one array [height, width, C] of all images, with a grey line between them.

    images: [N, H, W, C], laid out in `columns` columns (None: a near square), or [rows, columns, H, W, C] as laid out already.
    """
    if images.ndim == 4:
        columns = columns or math.ceil(math.sqrt(len(images)))
        rows = math.ceil(len(images) / columns)
        blank = np.full((rows * columns - len(images), *images.shape[1:]), GREY, images.dtype)
        images = np.concatenate([images, blank]).reshape(rows, columns, *images.shape[1:])
    # Each image gets a line on its right and below. The outermost ones are cut off again.
    spaced = np.pad(images, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)), constant_values=GREY)
    return np.concatenate(np.concatenate(spaced, axis=1), axis=1)[:-1, :-1]


def png(images: np.ndarray, columns: int | None = None) -> bytes:
    """Returns a PNG of a grid of uint8 images, enlarged by a whole factor if it is small."""
    pixels = grid(images, columns)
    factor = max(1, MIN_SIDE // max(pixels.shape[:2]))
    pixels = pixels.repeat(factor, axis=0).repeat(factor, axis=1)
    content = io.BytesIO()
    # Pillow has no mode for a grey image with a channel axis.
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(content, format="PNG")
    return content.getvalue()


def picture(samples: Mapping[str, np.ndarray]) -> bytes:
    """Returns a PNG of "samples". If "labels" count through the classes, each class gets a column."""
    labels = np.asarray(samples.get("labels", []))
    classes = int(labels.max(initial=0)) + 1
    in_turn = 2 < classes <= MAX_COLUMNS and np.array_equal(labels, np.arange(len(labels)) % classes)
    return png(to_bytes(np.asarray(samples["samples"])), classes if in_turn else None)
