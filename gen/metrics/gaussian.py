"""The baseline of class-conditional generation: one Gaussian of full covariance a class, fitted to the pixels."""

from __future__ import annotations

import numpy as np

from gen.errors import UserError
from gen.metrics.images import ImageSet


def gaussian(examples: ImageSet, labels: np.ndarray, seed: int) -> ImageSet:
    """An image of each class in `labels`, int32 [N], from N(mean, covariance) of the examples of that class; clipped to the
    range of pixels, then of 8 bits.

    With centred examples X, [n, D], and z ~ N(0, I), z X / sqrt(n - 1) has exactly their unbiased covariance, however
    singular: no [D, D] is made, and no ridge is needed.

    Raises: UserError for a class without examples.
    """
    assert examples.label is not None
    rng = np.random.default_rng(seed)
    image = np.empty((len(labels), *examples.image.shape[1:]), np.uint8)
    for c in np.unique(labels):
        wanted, x = labels == c, examples.image[examples.label == c].astype(np.float32)
        if not len(x):
            raise UserError(f"no training image is of class {c}, so a Gaussian can't be fitted to it")
        flat = x.reshape(len(x), -1)
        mean = flat.mean(axis=0)
        z = rng.standard_normal((int(wanted.sum()), len(x)), np.float32)
        drawn = mean + z @ (flat - mean) / np.sqrt(max(len(x) - 1, 1), dtype=np.float32)
        image[wanted] = np.rint(np.clip(drawn, 0, 255)).reshape(-1, *x.shape[1:])
    return ImageSet(image, labels)
