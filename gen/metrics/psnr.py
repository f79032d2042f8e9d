"""Peak signal-to-noise ratio of translated images, and two trivial translations of sources into targets, as baselines."""

from __future__ import annotations

import numpy as np

from gen.metrics.images import ImageSet

ROUNDING = 1 / 12
"""Mean squared error of rounding to 8 bits. Smaller errors are replaced by it, so that equal images have a finite ratio."""
QUERY_CHUNK = 100
"""Number of sources whose neighbours are searched at a time."""


def psnr(images: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean over images of 10 log10(255^2 / mean squared error), in dB. images, targets: uint8 [N, H, W, C]."""
    # One image at a time, because float64 copies of all images would take 8 times their memory.
    errors = [np.square(x.astype(np.float64) - y).mean() for x, y in zip(images, targets, strict=True)]
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, ROUNDING))))


def nearest_targets(known: ImageSet, pairs: ImageSet) -> np.ndarray:
    """Translates the source of each pair into the target of the known pair with the nearest source, uint8 [N, H, W, C].

    known: training pairs. The distance between sources is Euclidean.
    """
    sources, queries = (_sources(x).reshape(len(x.image), -1).astype(np.float32) / 255 for x in (known, pairs))
    norms = np.square(sources).sum(1)
    found = []
    for start in range(0, len(queries), QUERY_CHUNK):
        # |q - s|^2 without |q|^2, which is the same for all s.
        found.append((norms - 2 * queries[start : start + QUERY_CHUNK] @ sources.T).argmin(1))
    return known.image[np.concatenate(found)]


def colors_of_levels(known: ImageSet, pairs: ImageSet) -> np.ndarray:
    """Translates each pixel of the sources into a colour that depends only on its brightness, uint8 [N, H, W, C].

    The colour is the mean colour of all target pixels in the known pairs whose source pixel has the same brightness.
    """
    level, wanted = (np.rint(_sources(x).mean(-1)).astype(np.uint8) for x in (known, pairs))
    counts = np.bincount(level.ravel(), minlength=256)[:, None]
    sums = np.stack([np.bincount(level.ravel(), x.ravel(), 256) for x in np.moveaxis(known.image, -1, 0)], axis=-1)
    # A brightness that does not occur in the known sources gets the mean colour of all target pixels.
    means = np.where(counts > 0, sums / np.maximum(counts, 1), sums.sum(0) / counts.sum())
    return np.rint(means).astype(np.uint8)[wanted]


def _sources(pairs: ImageSet) -> np.ndarray:
    assert pairs.source is not None
    return pairs.source
