"""Peak signal-to-noise ratio of images and their targets, and trivial translations of sources into targets."""

from __future__ import annotations

import numpy as np

from gen.metrics.images import ImageSet

ROUNDING = 1 / 12
"""Mean squared error of rounding to 8 bits. It is the lower bound on the error of a pair, so that equal images have a finite ratio."""
QUERY_CHUNK = 100
"""Number of sources whose neighbours are searched at a time."""


def psnr(images: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean over images of 10 log10(255^2 / mean squared error), in dB. Both are uint8 [N, H, W, C]."""
    errors = [np.square(x.astype(np.float64) - y).mean() for x, y in zip(images, targets, strict=True)]
    return float(np.mean(10 * np.log10(255**2 / np.maximum(errors, ROUNDING))))


def nearest_targets(known: ImageSet, pairs: ImageSet) -> np.ndarray:
    """Returns, for each pair, the target of the known pair whose source is nearest in Euclidean distance, uint8 [N, H, W, C]."""
    sources, queries = (_sources(x).reshape(len(x.image), -1).astype(np.float32) / 255 for x in (known, pairs))
    norms = np.square(sources).sum(1)
    found = []
    for start in range(0, len(queries), QUERY_CHUNK):
        # |q - s|^2 without |q|^2, which is the same for all s.
        found.append((norms - 2 * queries[start : start + QUERY_CHUNK] @ sources.T).argmin(1))
    return known.image[np.concatenate(found)]


def colors_of_levels(known: ImageSet, pairs: ImageSet) -> np.ndarray:
    """Colours each pixel of the sources by its brightness alone, uint8 [N, H, W, C].

    The colour is the mean over all pixels of known targets whose sources have the same brightness.
    """
    level, wanted = (np.rint(_sources(x).mean(-1)).astype(np.uint8) for x in (known, pairs))
    counts = np.bincount(level.ravel(), minlength=256)[:, None]
    sums = np.stack([np.bincount(level.ravel(), x.ravel(), 256) for x in np.moveaxis(known.image, -1, 0)], axis=-1)
    # A level of brightness that no known source has gets the mean of all pixels.
    means = np.where(counts > 0, sums / np.maximum(counts, 1), sums.sum(0) / counts.sum())
    return np.rint(means).astype(np.uint8)[wanted]


def _sources(pairs: ImageSet) -> np.ndarray:
    assert pairs.source is not None
    return pairs.source
