"""Priors p(z) of the top latent group: their parameters, log-probabilities and samples, and the KL if it has a closed form."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array, Feature, Key, Params
from gen.errors import check_positive
from gen.networks import gaussian
from gen.networks.gaussian import Gaussian
from gen.networks.limits import limit_size

MAX_LOG_STD = 8.0
"""Learned log standard deviations of a mixture are used unchanged up to this absolute value, and squashed below twice this value.
The smallest standard deviation of a posterior is exp(-8), too."""
Encode = Callable[[Array], Gaussian]
"""Encodes images [N, H, W, C] to q(z | x), [N, D], of the top group."""


@dataclass(frozen=True)
class Prior:
    """Base class of the priors p(z) of the top latent group. Subclass it to add a prior.

    The argument `params` of its methods holds the prior's parameters, as returned by `init`.
    """

    def init(self, key: Key, latent: int, image: Feature, dtype: DTypeLike) -> Params:
        """Returns the parameters at step 0, which are trained together with the networks. {}: the prior has no parameters.

        latent: number of dimensions D of z. image: describes the images that the model encodes. dtype: of the
        parameters.
        """
        return {}

    def kl(self, params: Params, q: Gaussian) -> Array | None:
        """Returns KL(q || p) of each dimension in nats, [..., D], or None if it has no closed form."""
        return None

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        """Returns log p(z) in nats, [..., D] -> [...].

        encode: the encoder, which a VampPrior applies to its pseudo-inputs. Other priors do not use it.
        """
        raise NotImplementedError

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        """Draws one z ~ p(z), [latent]. encode: see `log_prob`. latent: number of dimensions of z.

        temperature: factor on the standard deviation, in a mixture on the standard deviation of each component.
        """
        raise NotImplementedError

    def tiny(self) -> Prior:
        """Returns the same prior with the smallest sizes, for tests."""
        return self


@dataclass(frozen=True)
class StandardNormal(Prior):
    """The standard normal distribution N(0, I)."""

    def kl(self, params: Params, q: Gaussian) -> Array:
        return gaussian.gaussian_kl(q, _standard(q.mean))

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        return gaussian.gaussian_log_prob(z, _standard(z)).sum(-1)

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        return temperature * jax.random.normal(key, (latent,))


@dataclass(frozen=True)
class GaussianMixture(Prior):
    """A mixture of diagonal Gaussians with learned weights, means and standard deviations."""

    components: int = 200
    """Number of Gaussians."""

    def __post_init__(self):
        check_positive(components=self.components)

    def init(self, key: Key, latent: int, image: Feature, dtype: DTypeLike) -> Params:
        # The mixture starts near N(0, I): its variance is 0.7^2 + exp(-0.3)^2, about 1.
        return {
            "mean": 0.7 * jax.random.normal(key, (self.components, latent), dtype),
            "log_std": jnp.full((self.components, latent), -0.3, dtype),
            "logits": jnp.zeros(self.components, dtype),
        }

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        return _mixture_log_prob(self._components(params), params["logits"], z)

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        return _mixture_sample(self._components(params), params["logits"], key, temperature)

    def _components(self, params: Params) -> Gaussian:
        # Without a limit, a component could shrink around a few latents, and its log density elsewhere would diverge.
        return Gaussian(params["mean"], limit_size(params["log_std"], MAX_LOG_STD))

    def tiny(self) -> Prior:
        return GaussianMixture(7)


@dataclass(frozen=True)
class VampPrior(Prior):
    """A mixture, with equal weights, of the posteriors q(z | u) of learned images u, the pseudo-inputs.

    Tomczak and Welling 2018, equation 9.
    """

    components: int = 500
    """Number of pseudo-inputs."""

    def __post_init__(self):
        check_positive(components=self.components)

    def init(self, key: Key, latent: int, image: Feature, dtype: DTypeLike) -> Params:
        return {"pseudo_inputs": 0.1 * jax.random.normal(key, (self.components, *image.shape), dtype)}

    def log_prob(self, params: Params, encode: Encode, z: Array) -> Array:
        return _mixture_log_prob(self._components(params, encode), jnp.zeros(self.components, z.dtype), z)

    def sample(self, params: Params, encode: Encode, key: Key, latent: int, temperature: float) -> Array:
        return _mixture_sample(self._components(params, encode), jnp.zeros(self.components), key, temperature)

    def _components(self, params: Params, encode: Encode) -> Gaussian:
        # The optimizer may move pseudo-inputs out of the range of pixels, [-1, 1].
        return encode(jnp.clip(params["pseudo_inputs"], -1, 1))

    def tiny(self) -> Prior:
        return VampPrior(7)


def _standard(like: Array) -> Gaussian:
    return Gaussian(jnp.zeros_like(like), jnp.zeros_like(like))


def _mixture_log_prob(p: Gaussian, logits: Array, z: Array) -> Array:
    """Returns the log density at z of a mixture of M Gaussians, in nats, [...].

    p: the Gaussians, [M, D]. logits: logarithms of the mixture weights up to a constant, [M]. z: [..., D].
    """
    # (z - mean)^2 is multiplied out, so that it takes two matrix products and no array of shape [..., M, D].
    precision = jnp.exp(-2 * p.log_std)
    constant = jnp.sum(-0.5 * (gaussian.LOG_2PI + p.mean**2 * precision) - p.log_std, axis=-1)
    dot = functools.partial(jnp.matmul, precision="highest")
    log_p = dot(z, (p.mean * precision).T) - 0.5 * dot(jnp.square(z), precision.T)
    log_pi = jax.nn.log_softmax(logits)
    log_p += jnp.broadcast_to(constant + log_pi, log_p.shape)
    # For a narrow component, the multiplied-out terms cancel and lose precision. So the likeliest component is computed again
    # from z - mean.
    i = jnp.argmax(log_p, axis=-1)
    nearest = log_pi[i] + gaussian.gaussian_log_prob(z, Gaussian(p.mean[i], p.log_std[i])).sum(-1)
    log_p = jnp.where(jax.nn.one_hot(i, log_p.shape[-1], dtype=bool), nearest[..., None], log_p)
    return jax.nn.logsumexp(log_p, axis=-1)


def _mixture_sample(p: Gaussian, logits: Array, key: Key, temperature: float) -> Array:
    """Draws one sample [D] from a mixture of Gaussians. temperature: factor on their standard deviations.

    p, logits: see `_mixture_log_prob`.
    """
    component, noise = jax.random.split(key)
    i = jax.random.categorical(component, logits)
    return p.mean[i] + temperature * jnp.exp(p.log_std[i]) * jax.random.normal(noise, p.mean.shape[1:], p.mean.dtype)
