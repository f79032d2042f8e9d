"""The medium of samples that no other medium shows, such as points or latents: it writes the arrays and a plot."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from gen.core import Medium, RunView, Shown

# In pixels: the side of the square plot, the empty border, and the radius of a point.
SIDE, MARGIN, RADIUS = 480, 16, 2
# Maximum number of vectors in a plot. More lines would hide each other.
MAX_LINES = 16
FILES = "samples"
"""Name of the sub-folder for samples that have a file each."""


@dataclass(frozen=True)
class Arrays(Medium):
    """Arrays [n, ...] of any kind of data, written as arrays and as a plot."""

    def show(self, samples: Mapping[str, np.ndarray], run: RunView, options: Any = None) -> Shown:
        """Returns samples.png (a plot of the samples) and samples.npz (all arrays)."""
        return Shown({"samples.png": plot(np.asarray(samples["samples"])), "samples.npz": pack_arrays(samples)})


ARRAYS = Arrays()


def number_names(n: int) -> list[str]:
    """Returns n file names without endings: the numbers from 0, with leading zeros so that they sort by name."""
    digits = max(5, len(str(n - 1)))
    return [f"{i:0{digits}d}" for i in range(n)]


def name_samples(n: int, labels: np.ndarray | None, names: tuple[str, ...]) -> list[str]:
    """Returns the names of the files of n samples, without endings: 00003_label7_dog, or without labels 00003.

    labels: int [n]. names: names of the classes in the order of their numbers. (): the classes have no names.
    """
    ends = [""] * n
    if labels is not None:
        ends = [f"_label{label}" for label in np.asarray(labels).tolist()]
        # A class name may be any text, so characters other than letters, digits, - and _ are replaced. A name that is
        # the number of the class is left out, because the number is there already.
        known = {str(i): re.sub(r"[^\w-]+", "-", name)[:40] for i, name in enumerate(names) if name != str(i)}
        ends = [f"{end}_{name}" if (name := known.get(end[len("_label") :])) else end for end in ends]
    return [number + end for number, end in zip(number_names(n), ends, strict=True)]


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Returns the content of a compressed .npz file with these arrays."""
    content = io.BytesIO()
    named: dict[str, Any] = dict(arrays)
    np.savez_compressed(content, **named)
    return content.getvalue()


def plot(samples: np.ndarray) -> bytes:
    """Returns a PNG with a plot of samples [n, ...].

    Samples of 2 numbers are points, and single numbers are points on a horizontal line. Longer samples are lines, entry
    against index, of which at most MAX_LINES are drawn.
    """
    # The samples of a model that diverges have NaN and infinities. The plot must not fail then.
    flat = np.nan_to_num(samples.reshape(len(samples), -1).astype(np.float64), posinf=0.0, neginf=0.0)
    image = Image.new("L", (SIDE, SIDE), 255)
    draw = ImageDraw.Draw(image)
    if flat.shape[1] <= 2:
        # A single number gets 0 as its second coordinate.
        places = np.pad(flat, ((0, 0), (0, 2 - flat.shape[1])))
        for x, y in _to_pixels(places):
            draw.ellipse((x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS), fill=0)
    else:
        rows = flat[:MAX_LINES]
        index = np.broadcast_to(np.arange(rows.shape[1]), rows.shape)
        for line in _to_pixels(np.stack([index, rows], axis=-1)):
            draw.line([(x, y) for x, y in line], fill=0)
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def _to_pixels(places: np.ndarray) -> np.ndarray:
    """Scales coordinates [..., 2] to the pixels of the plot, so that they fill it: x to the right, y upwards."""
    corners = places.reshape(-1, 2)
    low, high = corners.min(axis=0), corners.max(axis=0)
    scaled = (places - low) / np.where(high > low, high - low, 1)
    # Rows of an image count downwards.
    scaled[..., 1] = 1 - scaled[..., 1]
    return MARGIN + scaled * (SIDE - 2 * MARGIN)
