"""Precision, recall, density and coverage: fidelity and diversity of generated features, by nearest neighbours.

Everything is computed in float64 on the host, in blocks of bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError, check_positive

MAX_BLOCK = 2**23
"""Largest number of pairs in a block of distances: 64 MiB of float64."""


class Prdc(NamedTuple):
    """Scores by balls. Each sample has a ball, whose radius is the distance to its k-th nearest neighbour in its set."""

    precision: float
    """Fraction of generated samples that lie in the ball of a real sample, in [0, 1]."""
    recall: float
    """Fraction of real samples that lie in the ball of a generated sample, in [0, 1]."""
    density: float
    """Mean number of balls of real samples in which a generated sample lies, divided by k. It can exceed 1."""
    coverage: float
    """Fraction of real samples whose ball contains a generated sample, in [0, 1]."""


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5) -> Prdc:
    """Returns precision, recall, density and coverage of generated features.

    real, fake: features, [N, D] and [M, D]. A sample on the edge of a ball counts as outside. Squared distances that differ
    by less than about D * 1e-16 * |x|^2 from the squared radius count as on the edge, because of rounding.

    Raises: UserError if a sample has no k neighbours in its set, or for features of different lengths.

    Source: Kynkäänniemi et al. 2019, equations 1 and 2 (precision, recall); Naeem et al. 2020, section 3 (density, coverage).
    """
    x, y = check_pair(real, fake)
    check_positive(k=k)
    if (fewest := min(len(x), len(y))) <= k:
        raise UserError(f"a sample among {fewest} samples has no {k} neighbours; use more samples")
    # Distances don't depend on the origin, but their rounding does: |a|^2 + |b|^2 - 2ab cancels far from 0.
    origin = x.mean(axis=0)
    x, y = x - origin, y - origin
    real_radius, fake_radius = _squared_radius(x, k), _squared_radius(y, k)
    balls = np.zeros(len(y), np.int64)  # real balls around each generated sample
    recalled, covered = np.zeros(len(x), bool), np.zeros(len(x), bool)
    # Upper bounds of distances against lower bounds of radii: a tie is outside.
    for rows in row_blocks(len(x), len(y)):
        distance = _squared_distances(x[rows], y, upper=True)
        in_real, in_fake = distance < real_radius[rows, None], distance < fake_radius[None, :]
        balls += in_real.sum(axis=0)
        recalled[rows], covered[rows] = in_fake.any(axis=1), in_real.any(axis=1)
    return Prdc(
        precision=float((balls > 0).mean()),
        recall=float(recalled.mean()),
        density=float(balls.mean() / k),
        coverage=float(covered.mean()),
    )


def check_pair(real: ArrayLike, fake: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns two sets of features, [N, D] and [M, D], in float64.

    Raises: UserError for features of different lengths.
    """
    x, y = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    if x.shape[1] != y.shape[1]:
        raise UserError(
            f"features of {x.shape[1]} and {y.shape[1]} dimensions can't be compared; use one feature extractor for both"
        )
    return x, y


def row_blocks(n: int, m: int) -> Iterator[slice]:
    """Yields slices of n rows, such that a block of rows by m columns has at most MAX_BLOCK elements."""
    rows = max(MAX_BLOCK // m, 1)
    return (slice(start, start + rows) for start in range(0, n, rows))


def _squared_distances(a: np.ndarray, b: np.ndarray, upper: bool) -> np.ndarray:
    """Returns a bound, [N, M], on |a - b|^2 = |a|^2 + |b|^2 - 2ab: above it if `upper`, otherwise below it.

    The bound is off by the largest possible rounding error. Distances are compared as upper bound < lower bound, so a tie is
    never taken for a neighbour, in whatever order a matrix product adds.
    """
    slack = (a.shape[1] + 8) * np.finfo(np.float64).eps * (1 if upper else -1)
    a_norms, b_norms = (np.einsum("nd,nd->n", x, x) * (1 + slack) for x in (a, b))
    return a_norms[:, None] + b_norms[None, :] - 2 * a @ b.T


def _squared_radius(x: np.ndarray, k: int) -> np.ndarray:
    """Returns a lower bound, [N], on the squared distance of each sample to its k-th nearest neighbour."""
    blocks = (_squared_distances(x[rows], x, upper=False) for rows in row_blocks(len(x), len(x)))
    # Index k, not k - 1: the sample itself is the nearest of all.
    return np.concatenate([np.partition(block, k, axis=1)[:, k] for block in blocks])
