"""Decodes images in threads, and holds the decoded images of a small set in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import PIL

from gen.core import HostBatch
from gen.data import digest
from gen.data.images.pixels import Color
from gen.data.images.sources import Record, Source
from gen.data.readers import Held, hold

Shape = tuple[int, ...]
"""(height, width, channels) of a decoded image, or (2, height, width, channels) of a pair."""


class Decoding(NamedTuple):
    """Settings with which all images of a data set are decoded."""

    size: int | None
    """Side of the square crop. None: images keep their size."""
    shape: Shape
    """Shape of every decoded image."""
    background: Color
    """The colour behind transparent pixels."""


READ_RECORDS = 1024  # records that are read from the source at once
THREAD_RECORDS = 16  # records that a thread decodes at once. With fewer, threads would often wait for the pool's lock


def hold_in_memory(source: Source, used: np.ndarray, decoding: Decoding, whole: bool = False) -> Held:
    """Decodes the images at the positions `used`, or maps them from the cache if they were decoded before.

    used: positions in the source, sorted, int64 [N]. whole: check every byte of the cache against its hash, not only a
    sample.
    """
    # Other versions of Pillow and of `pixels.decode` may give other pixels. Raise the number here if you change `pixels.decode`.
    key = digest.sha256(str(source.fingerprint), str(tuple(decoding)), used, f"pillow {PIL.__version__}, decode 2")
    what = f"decoded images of {source.name}"
    return hold(partial(decode_images, source, decoding), used, key if source.fingerprint else None, what, whole)


def decode_images(source: Source, decoding: Decoding, positions: np.ndarray) -> HostBatch:
    """Reads and decodes the images at these positions [n], in threads.

    Returns {"image": uint8 [n, *decoding.shape], "label": int32 [n]}.

    Raises: UserError if an image cannot be decoded, or has another shape.
    """
    # Threads write into these arrays directly. Pillow releases the interpreter's lock while it decodes.
    size, shape, background = decoding
    n = len(positions)
    image, label = np.empty((n, *shape), np.uint8), np.empty(n, np.int32)

    def fill(start: int, records: list[Record]) -> None:
        for i, (encoded, label[i]) in enumerate(records, start):
            try:
                x = source.decode(encoded, size, shape[-1], background)
                if x.shape != shape:
                    raise ValueError(f"has the shape {x.shape} and not {shape}")
            except ValueError as error:
                raise source.unreadable(int(positions[i]), str(error)) from error
            # Bicubic resizing can overshoot the largest level.
            image[i] = np.minimum(x, source.levels - 1)

    with ThreadPoolExecutor() as pool:
        for first in range(0, n, READ_RECORDS):
            records = source.read(positions[first : first + READ_RECORDS].tolist())
            starts = range(0, len(records), THREAD_RECORDS)
            parts = (records[start : start + THREAD_RECORDS] for start in starts)
            # list() waits for the threads and raises what they raised.
            list(pool.map(fill, (first + start for start in starts), parts))
    return {"image": image, "label": label}
