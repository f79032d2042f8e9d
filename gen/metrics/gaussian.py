"""A baseline for class-conditional generation: for each class, a Gaussian with full covariance that is fitted to the pixels."""

from __future__ import annotations

import numpy as np

from gen.errors import UserError
from gen.metrics.images import ImageSet


def gaussian(examples: ImageSet, labels: np.ndarray, seed: int) -> ImageSet:
    """Draws an image for each label from a Gaussian that is fitted to the examples of its class.

    examples: images with labels. labels: int32 [N], the class of each image to draw. Drawn pixels are clipped to [0, 255] and rounded
    to 8 bits.

    Raises: UserError for a class without examples.
    """
    assert examples.label is not None
    rng = np.random.default_rng(seed)
    image = np.empty((len(labels), *examples.image.shape[1:]), np.uint8)
    for c in np.unique(labels):
        wanted, x = labels == c, examples.image[examples.label == c].astype(np.float32)
        if not len(x):
            raise UserError(
                f"no training image has class {c}, so no Gaussian can be fitted to it; use more training images"
            )
        flat = x.reshape(len(x), -1)
        mean = flat.mean(axis=0)
        # With centred examples X, [n, D], and z ~ N(0, I), the vector z X / sqrt(n - 1) has exactly their unbiased
        # covariance, even a singular one. It needs no [D, D] matrix and no ridge.
        z = rng.standard_normal((int(wanted.sum()), len(x)), np.float32)
        drawn = mean + z @ (flat - mean) / np.sqrt(max(len(x) - 1, 1), dtype=np.float32)
        image[wanted] = np.rint(np.clip(drawn, 0, 255)).reshape(-1, *x.shape[1:])
    return ImageSet(image, labels)
