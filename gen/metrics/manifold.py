"""Fidelity and diversity from nearest neighbours: precision, recall (Kynkäänniemi et al. 2019), density, coverage
(Naeem et al. 2020)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from gen.core import Array, UserError


def prdc(real: ArrayLike, fake: ArrayLike, k: int = 5) -> dict[str, Array]:
    """Precision, recall, density and coverage, each a scalar (density may pass 1).

    real: [N, D], fake: [M, D] features. A sample's ball reaches to its k-th nearest neighbour in its own set.
    precision: share of fakes within some real ball; recall: share of reals within some fake ball; density: real balls
    around a fake, over k; coverage: share of real balls that hold a fake.

    Raises: UserError if a set has no k neighbours.
    """
    real, fake = jnp.asarray(real), jnp.asarray(fake)
    if min(len(real), len(fake)) <= k:
        raise UserError(f"{min(len(real), len(fake))} samples have no {k} neighbours each; use more samples")
    real_radius, fake_radius = (_kth_distance(x, k) for x in (real, fake))
    between = _distances(real, fake)
    in_real, in_fake = between < real_radius[:, None], between < fake_radius[None, :]
    return {
        "precision": in_real.any(axis=0).mean(),
        "recall": in_fake.any(axis=1).mean(),
        "density": in_real.sum(axis=0).mean() / k,
        "coverage": in_real.any(axis=1).mean(),
    }


def _distances(a: Array, b: Array) -> Array:
    """Euclidean distances [N, M] of [N, D] and [M, D]; row by row, so that no [N, M, D] is made, and by differences, since
    |a|^2 - 2ab + |b|^2 loses the small ones."""
    return jax.lax.map(lambda row: jnp.sqrt(jnp.sum(jnp.square(row[None] - b), axis=-1)), a)


def _kth_distance(x: Array, k: int) -> Array:
    """Distance of each to its k-th nearest other, [N]."""
    return jnp.sort(_distances(x, x), axis=1)[:, k]
