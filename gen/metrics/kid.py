"""Kernel distance between two sets of features. With Inception features it is the KID (Bińkowski et al. 2018).

Everything is computed in float64 on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError, check_positive
from gen.metrics.prdc import check_pair, row_blocks


class Kid(NamedTuple):
    """Kernel distance (squared MMD), averaged over random subsets."""

    mean: float
    """Mean over the subsets. The estimate is unbiased, so it may be negative if both sets have the same distribution."""
    std: float
    """Population standard deviation over the subsets, as papers report it. It is not the error of the mean."""


def mmd2(real: ArrayLike, fake: ArrayLike) -> float:
    """Returns the unbiased squared maximum mean discrepancy under the kernel k(x, y) = (x'y / D + 1)^3.

    real, fake: features, [N, D] and [M, D]. All pairs are used, in blocks of bounded memory.

    Raises: UserError for fewer than 2 samples, or features of different lengths.

    Source: Gretton et al. 2012, lemma 6; the kernel is from Bińkowski et al. 2018, section 4.
    """
    x, y = check_pair(real, fake)
    if (fewest := min(len(x), len(y))) < 2:
        raise UserError(f"a set of {fewest} has no pair of samples; use at least 2 samples")
    return _mean_within(x) + _mean_within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def kid(real: ArrayLike, fake: ArrayLike, subsets: int = 100, size: int = 1000, seed: int = 0) -> Kid:
    """Returns the mean and deviation of `mmd2` over `subsets` random subsets of `size` samples of each set.

    Subsets are drawn without replacement by numpy's default_rng(seed), in the order real, fake, real, fake, ...

    Raises: UserError for fewer samples than `size`, or features of different lengths.
    """
    x, y = check_pair(real, fake)
    check_positive(subsets=subsets)
    if (fewest := min(len(x), len(y))) < size:
        raise UserError(
            f"{fewest} samples contain no subset of {size}; use more samples, or a smaller size for all runs to compare"
        )
    # A fixed seed, so that the distance of the same features is the same number.
    rng = np.random.default_rng(seed)

    def draw(features: np.ndarray) -> np.ndarray:
        return features[rng.choice(len(features), size, replace=False)]

    distances = [mmd2(draw(x), draw(y)) for _ in range(subsets)]
    return Kid(float(np.mean(distances)), float(np.std(distances)))


def _mean_within(x: np.ndarray) -> float:
    """Returns the mean of the kernel over all pairs of different rows of x [N, D]."""
    # The pairs of a sample with itself would bias the estimate.
    diagonal = (np.einsum("nd,nd->n", x, x) / x.shape[1] + 1) ** 3
    return (_kernel_sum(x, x) - float(diagonal.sum())) / (len(x) * (len(x) - 1))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the sum of the kernel over all pairs of a row of x [N, D] and a row of y [M, D]."""
    total = 0.0
    for rows in row_blocks(len(x), len(y)):
        base = x[rows] @ y.T / x.shape[1] + 1
        # base ** 3 is slow in numpy.
        total += float(np.sum(base * base * base))
    return total
