"""Fidelity and diversity from nearest neighbours: precision, recall (Kynkäänniemi et al. 2019), density, coverage
(Naeem et al. 2020). float64 on the host, in blocks of bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError, check_positive

BLOCK = 2**23  # elements of a block of pairs: 64 MiB


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5) -> dict[str, float]:
    """Precision, recall, density and coverage (density may pass 1).

    real: [N, D], fake: [M, D] features. A sample's ball reaches to its k-th nearest neighbour in its own set; what lies
    on its edge, to about D * 1e-16 of |x|^2, is outside.
    precision: share of fakes within some real ball; recall: share of reals within some fake ball; density: real balls
    around a fake, over k; coverage: share of real balls that hold a fake.

    Raises: UserError if a set has no k neighbours, or for features of different length.
    """
    x, y = pair(real, fake)
    check_positive(k=k)
    if (least := min(len(x), len(y))) <= k:
        raise UserError(f"{least} samples have no {k} neighbours each; use more samples")
    origin = x.mean(axis=0)
    x, y = x - origin, y - origin
    real_radius, fake_radius = _squared_radius(x, k), _squared_radius(y, k)
    around = np.zeros(len(y), np.int64)
    recalled, covered = np.zeros(len(x), bool), np.zeros(len(x), bool)
    for rows in row_blocks(len(x), len(y)):
        distance = _squared_distances(x[rows], y, upper=True)
        in_real, in_fake = distance < real_radius[rows, None], distance < fake_radius[None, :]
        around += in_real.sum(axis=0)
        recalled[rows], covered[rows] = in_fake.any(axis=1), in_real.any(axis=1)
    return {
        "precision": (around > 0).mean(),
        "recall": recalled.mean(),
        "density": around.mean() / k,
        "coverage": covered.mean(),
    }


def pair(real: ArrayLike, fake: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """[N, D] and [M, D] in float64.

    Raises: UserError for features of different length.
    """
    x, y = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if x.shape[1] != y.shape[1]:
        raise UserError(f"features of {x.shape[1]} and {y.shape[1]} dimensions don't compare; use one extractor")
    return x, y


def row_blocks(n: int, m: int) -> Iterator[slice]:
    """Slices of n rows, such that a block of rows by m columns has at most BLOCK elements."""
    rows = max(BLOCK // m, 1)
    return (slice(start, start + rows) for start in range(0, n, rows))


def _squared_distances(a: np.ndarray, b: np.ndarray, upper: bool) -> np.ndarray:
    """A bound, [N, M], of |a - b|^2 = |a|^2 + |b|^2 - 2ab: above or below it by what its rounding can be at most. So ties
    are told from neighbours, whatever order a product is summed in."""
    slack = (a.shape[1] + 8) * np.finfo(np.float64).eps * (1 if upper else -1)
    a_norms, b_norms = (np.einsum("nd,nd->n", x, x) * (1 + slack) for x in (a, b))
    return a_norms[:, None] + b_norms[None, :] - 2 * a @ b.T


def _squared_radius(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each to its k-th nearest other, [N]; bound from below."""
    blocks = (_squared_distances(x[rows], x, upper=False) for rows in row_blocks(len(x), len(x)))
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for block in blocks])
