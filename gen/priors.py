"""Priors p(z) of the top latent group as objects: parameters, log p, samples, and a closed KL where there is one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gen import losses
from gen.core import Array, Feature, Key, Params
from gen.losses import Gaussian

Encode = Callable[[Array], Gaussian]
"""Images [K, H, W, C] -> q(z | x), [K, D]."""


@dataclass(frozen=True)
class Prior:
    """p(z). Subclass it to add one."""

    def init(self, key: Key, latent: int, image: Feature, dtype: str) -> Params:
        """Parameters, trained with the decoder's."""
        return {}

    def kl(self, params: Params, q: Gaussian) -> Array | None:
        """KL(q || p) of each dimension, [..., D], or None where it has no closed form."""
        return None

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        """log p(z) in nats, [..., D] -> [...]."""
        raise NotImplementedError

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        """One z ~ p, [latent]; temperature scales its standard deviation (a mixture: its components')."""
        raise NotImplementedError

    def tiny(self) -> Prior:
        return self


@dataclass(frozen=True)
class StandardNormal(Prior):
    """N(0, I)."""

    def kl(self, params: Params, q: Gaussian) -> Array:
        return losses.gaussian_kl(q, _standard(q.mean))

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        return losses.gaussian_log_prob(z, _standard(z)).sum(-1)

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        return temperature * jax.random.normal(key, (latent,))


@dataclass(frozen=True)
class VampPrior(Prior):
    """The average posterior of learned pseudo-inputs. Tomczak and Welling 2018, equation 9."""

    components: int = 500
    """Number of pseudo-inputs."""

    def init(self, key: Key, latent: int, image: Feature, dtype: str) -> Params:
        return {"pseudo_inputs": 0.1 * jax.random.normal(key, (self.components, *image.shape), dtype)}

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        return _mixture_log_prob(self._components(params, encode), z)

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        return _mixture_sample(self._components(params, encode), key, temperature)

    def _components(self, params: Params, encode: Encode) -> Gaussian:
        return encode(jnp.clip(params["pseudo_inputs"], -1, 1))

    def tiny(self) -> Prior:
        return VampPrior(7)


def _standard(like: Array) -> Gaussian:
    return Gaussian(jnp.zeros_like(like), jnp.zeros_like(like))


def _mixture_log_prob(p: Gaussian, z: Array) -> Array:
    """log of the even mixture of K Gaussians [K, D] at z [..., D] -> [...]. nats.

    The squares are multiplied out, so that the work is two matrix products and no [..., K, D] is made.
    """
    precision = jnp.exp(-2 * p.log_std)
    constant = jnp.sum(-0.5 * (losses.LOG_2PI + p.mean**2 * precision) - p.log_std, axis=-1)
    log_p = z @ (p.mean * precision).T - 0.5 * jnp.square(z) @ precision.T
    log_p += jnp.broadcast_to(constant, log_p.shape)
    return jax.nn.logsumexp(log_p, axis=-1) - jnp.log(jnp.asarray(p.mean.shape[0], z.dtype))


def _mixture_sample(p: Gaussian, key: Key, temperature: float) -> Array:
    which, noise = jax.random.split(key)
    i = jax.random.randint(which, (), 0, p.mean.shape[0])
    return p.mean[i] + temperature * jnp.exp(p.log_std[i]) * jax.random.normal(noise, p.mean.shape[1:], p.mean.dtype)
