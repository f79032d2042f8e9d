"""Priors p(z) of the top latent group as objects: parameters, log p, samples, and a closed KL where there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gen.core import Array, Feature, Key, Params
from gen.errors import check_positive
from gen.networks import gaussian
from gen.networks.gaussian import Gaussian

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
        return gaussian.gaussian_kl(q, _standard(q.mean))

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        return gaussian.gaussian_log_prob(z, _standard(z)).sum(-1)

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        return temperature * jax.random.normal(key, (latent,))


@dataclass(frozen=True)
class GaussianMixture(Prior):
    """A mixture of diagonal Gaussians with learned weights, means and deviations."""

    components: int = 200
    """Number of Gaussians."""

    def init(self, key: Key, latent: int, image: Feature, dtype: str) -> Params:
        return {
            "mean": 0.7 * jax.random.normal(key, (self.components, latent), dtype),
            "log_std": jnp.full((self.components, latent), -0.3, dtype),
            "logits": jnp.zeros(self.components, dtype),
        }

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        return _mixture_log_prob(Gaussian(params["mean"], params["log_std"]), params["logits"], z)

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        return _mixture_sample(Gaussian(params["mean"], params["log_std"]), params["logits"], key, temperature)

    def tiny(self) -> Prior:
        return GaussianMixture(7)


@dataclass(frozen=True)
class VampPrior(Prior):
    """The average posterior of learned pseudo-inputs. Tomczak and Welling 2018, equation 9."""

    components: int = 500
    """Number of pseudo-inputs."""

    def __post_init__(self):
        check_positive(components=self.components)

    def init(self, key: Key, latent: int, image: Feature, dtype: str) -> Params:
        return {"pseudo_inputs": 0.1 * jax.random.normal(key, (self.components, *image.shape), dtype)}

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        return _mixture_log_prob(self._components(params, encode), jnp.zeros(self.components, z.dtype), z)

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        return _mixture_sample(self._components(params, encode), jnp.zeros(self.components), key, temperature)

    def _components(self, params: Params, encode: Encode) -> Gaussian:
        return encode(jnp.clip(params["pseudo_inputs"], -1, 1))

    def tiny(self) -> Prior:
        return VampPrior(7)


def _standard(like: Array) -> Gaussian:
    return Gaussian(jnp.zeros_like(like), jnp.zeros_like(like))


def _mixture_log_prob(p: Gaussian, logits: Array, z: Array) -> Array:
    """log of the mixture of K Gaussians [K, D], of weights softmax(logits) [K], at z [..., D] -> [...]. nats.

    The squares are multiplied out, so that the work is two matrix products and no [..., K, D] is made.
    """
    precision = jnp.exp(-2 * p.log_std)
    constant = jnp.sum(-0.5 * (gaussian.LOG_2PI + p.mean**2 * precision) - p.log_std, axis=-1)
    dot = functools.partial(jnp.matmul, precision="highest")
    log_p = dot(z, (p.mean * precision).T) - 0.5 * dot(jnp.square(z), precision.T)
    log_pi = jax.nn.log_softmax(logits)
    log_p += jnp.broadcast_to(constant + log_pi, log_p.shape)
    # The squares cancel where components are narrow, so the nearest one is computed anew, by differences.
    i = jnp.argmax(log_p, axis=-1)
    nearest = log_pi[i] + gaussian.gaussian_log_prob(z, Gaussian(p.mean[i], p.log_std[i])).sum(-1)
    log_p = jnp.where(jax.nn.one_hot(i, log_p.shape[-1], dtype=bool), nearest[..., None], log_p)
    return jax.nn.logsumexp(log_p, axis=-1)


def _mixture_sample(p: Gaussian, logits: Array, key: Key, temperature: float) -> Array:
    which, noise = jax.random.split(key)
    i = jax.random.categorical(which, logits)
    return p.mean[i] + temperature * jnp.exp(p.log_std[i]) * jax.random.normal(noise, p.mean.shape[1:], p.mean.dtype)
