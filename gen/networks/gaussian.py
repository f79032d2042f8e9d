"""Diagonal Gaussians: samples, log densities and divergences, in nats."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from gen.core import Array

LOG_2PI = 1.8378770664093453
"""log(2 pi)."""


class Gaussian(NamedTuple):
    """A diagonal Gaussian over D dimensions."""

    mean: Array
    """Mean of each dimension, [..., D]."""
    log_std: Array
    """Natural log of the standard deviation of each dimension, [..., D]."""

    def sample(self, noise: Array) -> Array:
        """Returns mean + std * noise, for standard normal noise [..., D]. Kingma and Welling 2014, section 2.4."""
        return self.mean + jnp.exp(self.log_std) * noise


def gaussian_log_prob(x: Array, q: Gaussian) -> Array:
    """Returns log N(x; mean, std^2) of each dimension in nats, [..., D]."""
    return -0.5 * (LOG_2PI + jnp.square((x - q.mean) * jnp.exp(-q.log_std))) - q.log_std


def gaussian_kl(q: Gaussian, p: Gaussian) -> Array:
    """Returns KL(q || p) of each dimension in nats, [..., D]. Kingma and Welling 2014, appendix B, for a general p."""
    ratio = 2 * (q.log_std - p.log_std)
    return 0.5 * (jnp.exp(ratio) + jnp.square((q.mean - p.mean) * jnp.exp(-p.log_std)) - 1 - ratio)
