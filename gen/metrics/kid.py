"""Kernel distance between sets of features; of Inception features, the KID (Bińkowski et al. 2018). float64 on the host."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError, check_positive
from gen.metrics.prdc import pair, row_blocks


class Kid(NamedTuple):
    """Over the subsets."""

    mean: float
    """Unbiased, so that it may lie below 0 for sets that are alike."""
    std: float
    """Population standard deviation, as is published; not the error of the mean."""


def mmd2(real: ArrayLike, fake: ArrayLike) -> float:
    """Unbiased squared maximum mean discrepancy of [N, D] and [M, D] under k(x, y) = (x'y / D + 1)^3. All pairs are used,
    in blocks of bounded memory. Gretton et al. 2012, lemma 6; Bińkowski et al. 2018.

    Raises: UserError for fewer than 2 samples, or features of different length.
    """
    x, y = pair(real, fake)
    if (least := min(len(x), len(y))) < 2:
        raise UserError(f"{least} samples have no pair; use at least 2")
    return _within(x) + _within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def kid(real: ArrayLike, fake: ArrayLike, subsets: int = 100, size: int = 1000, seed: int = 0) -> Kid:
    """`mmd2` over random subsets of `size`, drawn without replacement: real, then fake, subset by subset, by numpy's
    default_rng(seed).

    Raises: UserError for fewer samples than `size`, or features of different length.
    """
    x, y = pair(real, fake)
    check_positive(subsets=subsets)
    if (least := min(len(x), len(y))) < size:
        raise UserError(
            f"{least} samples hold no subset of {size}; use more samples, or a smaller size for all that compare"
        )
    rng = np.random.default_rng(seed)
    draw = lambda features: features[rng.choice(len(features), size, replace=False)]
    found = [mmd2(draw(x), draw(y)) for _ in range(subsets)]
    return Kid(float(np.mean(found)), float(np.std(found)))


def _within(x: np.ndarray) -> float:
    """Mean kernel of two different rows."""
    own = (np.einsum("nd,nd->n", x, x) / x.shape[1] + 1) ** 3
    return (_kernel_sum(x, x) - float(own.sum())) / (len(x) * (len(x) - 1))


def _kernel_sum(x: np.ndarray, y: np.ndarray) -> float:
    total = 0.0
    for rows in row_blocks(len(x), len(y)):
        base = x[rows] @ y.T / x.shape[1] + 1
        total += float(np.sum(base * base * base))  # a power of 3 is slow in numpy
    return total
