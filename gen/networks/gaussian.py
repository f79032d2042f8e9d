"""Diagonal Gaussians: samples, log-densities and divergences, in nats."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from gen.core import Array

LOG_2PI = 1.8378770664093453


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean and log standard deviation, [..., D]."""

    mean: Array
    log_std: Array

    def sample(self, noise: Array) -> Array:
        """mean + std * noise, for standard normal noise (Kingma and Welling 2014, section 2.4)."""
        return self.mean + jnp.exp(self.log_std) * noise


def gaussian_log_prob(x: Array, q: Gaussian) -> Array:
    """log N(x; mean, std^2) of each dimension, [..., D]. nats."""
    return -0.5 * (LOG_2PI + jnp.square((x - q.mean) * jnp.exp(-q.log_std))) - q.log_std


def gaussian_kl(q: Gaussian, p: Gaussian) -> Array:
    """KL(q || p) of each dimension, [..., D]. nats. Kingma and Welling 2014, appendix B, for a general p."""
    ratio = 2 * (q.log_std - p.log_std)
    return 0.5 * (jnp.exp(ratio) + jnp.square((q.mean - p.mean) * jnp.exp(-p.log_std)) - 1 - ratio)
