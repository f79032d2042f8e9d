"""Fréchet distance between Gaussians fitted to features; of Inception features, the FID (Heusel et al. 2017).

In float64 on the host: a covariance takes it, TPUs have none, and LAPACK there is faster than what JAX calls on a CPU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jax.typing import ArrayLike

from gen.errors import UserError


class Moments(NamedTuple):
    """Of a set of features; float64. Kept centred, since E[xx] - E[x]E[x] cancels."""

    count: float
    mean: np.ndarray
    """[D]."""
    scatter: np.ndarray
    """Sum of (x - mean)(x - mean)', [D, D]."""


def moments(features: ArrayLike, weight: ArrayLike) -> Moments:
    """Moments of a batch, [B, D], without the rows whose weight [B] is 0 (padding). Merging costs some D^2, so that
    batches of a thousand go fastest."""
    x = np.asarray(features)[np.asarray(weight) > 0].astype(np.float64)
    mean = x.sum(axis=0) / max(len(x), 1)
    x -= mean
    return Moments(np.float64(len(x)), mean, x.T @ x)


def merge(a: Moments, b: Moments) -> Moments:
    """Moments of the union of two disjoint parts. Chan et al. 1979."""
    count = a.count + b.count
    share, delta = b.count / max(count, 1), b.mean - a.mean
    between = np.outer(delta * (a.count * share), delta)
    between += a.scatter
    between += b.scatter
    return Moments(count, a.mean + delta * share, between)


def frechet(real: Moments, fake: Moments) -> float:
    """|mu_r - mu_f|^2 + tr(S_r + S_f - 2 (S_r^1/2 S_f S_r^1/2)^1/2), in squared units of the features; 0 for equal moments.
    nan if a feature was not finite. Heusel et al. 2017, equation 6, with unbiased covariances.

    Biased: of finite sets it is too large by a term of order 1/n that depends on both distributions, so numbers compare at
    equal n only (50,000 as published). Below n = D the covariances are singular and this term is most of the number.

    Raises: UserError for fewer than 2 samples, or features of different length.
    """
    if real.mean.shape != fake.mean.shape:
        raise UserError(
            f"features of {len(real.mean)} and {len(fake.mean)} dimensions don't compare; use one extractor"
        )
    if (least := min(real.count, fake.count)) < 2:
        raise UserError(f"{least:.0f} samples have no covariance; use at least 2")
    if not (np.isfinite(real.scatter).all() and np.isfinite(fake.scatter).all()):
        return float("nan")
    # With S = A A', the eigenvalues' roots are the singular values of A_r' A_f: no root is taken of a rounding error.
    cross = np.linalg.norm(_root(real).T @ _root(fake), "nuc")
    spread = sum(np.trace(m.scatter) / (m.count - 1) for m in (real, fake))
    distance = np.sum(np.square(real.mean - fake.mean)) + spread - 2 * cross
    return max(float(distance), 0.0)


def _root(m: Moments) -> np.ndarray:
    """A, [D, R], with A A' the covariance. R is the highest rank that so many samples have; beyond it is rounding."""
    values, vectors = np.linalg.eigh(m.scatter / (m.count - 1))
    rank = min(len(values), int(m.count) - 1)
    return vectors[:, -rank:] * np.sqrt(np.maximum(values[-rank:], 0))
