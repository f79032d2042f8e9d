"""Fréchet distance between Gaussians fitted to features. With Inception features it is the FID (Heusel et al. 2017).

Everything is computed in float64 with numpy on the host. Covariances need float64, which TPUs lack, and numpy's LAPACK is faster than
JAX's on a CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError


class Moments(NamedTuple):
    """Count, mean and scatter of a set of features, in float64. The scatter is centred, because
    E[xx'] - E[x]E[x]' would lose digits by cancellation."""

    count: float
    """Number of features."""
    mean: np.ndarray
    """Mean of the features, [D]."""
    scatter: np.ndarray
    """Sum of (x - mean)(x - mean)' over the features x, [D, D]."""


def moments(features: ArrayLike, weight: ArrayLike) -> Moments:
    """Returns the moments of a batch of features [B, D]. Rows with weight 0 (padding) are left out. weight: [B].

    Merging two moments costs about D^2 operations, so batches of about a thousand features are the fastest.
    """
    x = np.asarray(features)[np.asarray(weight) > 0].astype(np.float64)
    mean = x.sum(axis=0) / max(len(x), 1)
    # Centred first: E x x' - m m' would lose digits where the mean m is large.
    x -= mean
    return Moments(np.float64(len(x)), mean, x.T @ x)


def merge(a: Moments, b: Moments) -> Moments:
    """Returns the moments of the union of two disjoint sets. Source: Chan et al. 1979."""
    count = a.count + b.count
    share, delta = b.count / max(count, 1), b.mean - a.mean
    # Sums are in place, because a [D, D] matrix of Inception's features takes 32 MiB.
    between = np.outer(delta * (a.count * share), delta)
    between += a.scatter
    between += b.scatter
    return Moments(count, a.mean + delta * share, between)


def frechet(real: Moments, fake: Moments) -> float:
    """Returns |m_r - m_f|^2 + tr(S_r + S_f - 2 (S_r^1/2 S_f S_r^1/2)^1/2), with means m and unbiased
    covariances S of real (r) and generated (f) features.

    The unit is the squared unit of the features. Equal moments give 0. The result is nan if a feature was not finite.

    The estimate is biased: for n samples it is too large by a term of order 1/n that depends on both distributions. So only compare
    distances of equal n; published distances use n = 50,000. For n below D the covariances are singular, and this term is most of
    the distance.

    Raises: UserError for fewer than 2 samples, or features of different lengths.

    Source: Heusel et al. 2017, equation 6.
    """
    if real.mean.shape != fake.mean.shape:
        raise UserError(
            f"features of {len(real.mean)} and {len(fake.mean)} dimensions can't be compared; use one feature extractor "
            "for both"
        )
    if (fewest := min(real.count, fake.count)) < 2:
        raise UserError(f"a set of {fewest:.0f} has no covariance; use at least 2 samples")
    if not (np.isfinite(real.scatter).all() and np.isfinite(fake.scatter).all()):
        return float("nan")
    # With S = A A', the trace of the root is the sum of the singular values of A_r' A_f. Taking roots of the eigenvalues of
    # S_r S_f instead would take roots of rounding errors where the covariances are singular.
    cross = np.linalg.norm(_covariance_root(real).T @ _covariance_root(fake), "nuc")
    spread = sum(np.trace(m.scatter) / (m.count - 1) for m in (real, fake))
    distance = np.sum(np.square(real.mean - fake.mean)) + spread - 2 * cross
    return max(float(distance), 0.0)


def _covariance_root(m: Moments) -> np.ndarray:
    """Returns A, [D, R], such that A A' is the covariance."""
    values, vectors = np.linalg.eigh(m.scatter / (m.count - 1))
    # n samples have a covariance of rank n - 1 at most. Further eigenvalues are rounding errors.
    rank = min(len(values), int(m.count) - 1)
    return vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0))
