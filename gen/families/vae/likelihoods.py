"""Likelihoods p(x | z) of images: log-probabilities, means and samples, computed from a decoder's outputs.

Images are [..., H, W, C] in [-1, 1]. The outputs of a decoder are [..., H, W, likelihood.outputs(C)].
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from gen.core import Array, Feature, Key
from gen.errors import UserError, check_positive
from gen.families.vae import losses
from gen.networks import gaussian
from gen.networks.gaussian import Gaussian as Normal
from gen.networks.limits import limit_above

MAX_LOG_SCALE = 5.0
"""The log of a predicted scale is used unchanged up to this number. Larger ones are squashed below twice this number. Pixels are
in [-1, 1], where a distribution of scale exp(5) is nearly uniform."""
PIXELS = (-3, -2, -1)
"""The axes (H, W, C) of one image."""


@dataclass(frozen=True)
class Likelihood:
    """Base class of the likelihoods p(x | z) of images x with C channels. Subclass it to add a likelihood.

    The argument `outputs` of its methods is the output of the decoder at z, [..., H, W, self.outputs(C)].
    """

    def outputs(self, channels: int) -> int:
        """Returns the number of decoder outputs for each pixel. channels: number of channels C of a pixel."""
        return channels

    def log_prob(self, outputs: Array, x: Array) -> Array:
        """Returns log p(x | z) of each image x [..., H, W, C] in nats, summed over its pixels and channels: [...].

        outputs: of the decoder, [..., H, W, self.outputs(C)]. For likelihoods of discrete pixels, p is a probability,
        and otherwise a density on [-1, 1].
        """
        raise NotImplementedError

    def mean(self, outputs: Array) -> Array:
        """Returns the mean images E[x | z], [..., H, W, C], from decoder outputs [..., H, W, self.outputs(C)]."""
        raise NotImplementedError

    def sample(self, outputs: Array, key: Key) -> Array:
        """Draws images x ~ p(x | z), [..., H, W, C], from decoder outputs [..., H, W, self.outputs(C)]."""
        raise NotImplementedError

    def mismatch(self, image: Feature) -> str | None:
        """Returns the reason why `log_prob` is not a valid likelihood of such images. None: it is valid.

        An example is a density for discrete pixels. With a mismatch, no bound on the likelihood is reported. Training
        works, unless `check` raises.
        """
        if image.levels is not None and not image.dequantized:
            return f"{type(self).__name__} is a density, and the pixels are discrete; --data.dequantize makes them continuous"
        return None

    def check(self, image: Feature) -> None:
        """Checks that `log_prob` can be computed on such images. Raises: UserError if it can't."""


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """Independent binary pixels, -1 or 1. On grey pixels it is the usual cross-entropy loss, but not a likelihood."""

    def log_prob(self, outputs: Array, x: Array) -> Array:
        return losses.bernoulli_log_prob(outputs, (x + 1) / 2).sum(PIXELS)

    def mean(self, outputs: Array) -> Array:
        return jnp.tanh(outputs / 2)

    def sample(self, outputs: Array, key: Key) -> Array:
        return jnp.where(jax.random.bernoulli(key, jax.nn.sigmoid(outputs)), 1.0, -1.0).astype(outputs.dtype)

    def mismatch(self, image: Feature) -> str | None:
        if image.levels == 2:
            return None
        return "Bernoulli is a likelihood of binary pixels only; --data.binarize dynamic makes them binary"


@dataclass(frozen=True)
class ContinuousBernoulli(Likelihood):
    """Independent continuous pixels in [-1, 1], with the continuous Bernoulli density. Loaiza-Ganem and Cunningham 2019."""

    def log_prob(self, outputs: Array, x: Array) -> Array:
        # log 2 converts the density of each pixel from [0, 1] to [-1, 1].
        return (losses.continuous_bernoulli_log_prob(outputs, (x + 1) / 2) - math.log(2)).sum(PIXELS)

    def mean(self, outputs: Array) -> Array:
        # E[x] on [0, 1] is 1 / (1 - exp(-l)) - 1 / l. Near l = 0 the terms are huge and cancel: the series replaces them.
        near = jnp.abs(outputs) < 1e-2
        l = jnp.where(near, 1.0, outputs)
        return 2 * jnp.where(near, 0.5 + outputs / 12, -1 / jnp.expm1(-l) - 1 / l) - 1

    def sample(self, outputs: Array, key: Key) -> Array:
        # The inverse of the distribution function is log(1 + u (exp(l) - 1)) / l. It is computed for |l|, in a form whose exp
        # cannot overflow, and mirrored for negative l.
        u = jax.random.uniform(key, outputs.shape, outputs.dtype)
        near = jnp.abs(outputs) < 1e-2
        l = jnp.where(near, 1.0, jnp.abs(outputs))
        x = jnp.where(near, u, jnp.maximum(0.0, 1 + jnp.log(u + (1 - u) * jnp.exp(-l)) / l))
        return 2 * jnp.where(outputs < 0, 1 - x, x) - 1


@dataclass(frozen=True)
class Gaussian(Likelihood):
    """Independent Gaussian pixels."""

    std: float | None = None
    """Standard deviation of all pixels, which are in [-1, 1]. None: the decoder predicts it for each pixel and channel."""

    def __post_init__(self):
        if self.std is not None:
            check_positive(std=self.std)

    def outputs(self, channels: int) -> int:
        return channels if self.std is not None else 2 * channels

    def log_prob(self, outputs: Array, x: Array) -> Array:
        return gaussian.gaussian_log_prob(x, self._normal(outputs)).sum(PIXELS)

    def mean(self, outputs: Array) -> Array:
        return self._normal(outputs).mean

    def sample(self, outputs: Array, key: Key) -> Array:
        p = self._normal(outputs)
        return p.sample(jax.random.normal(key, p.mean.shape, p.mean.dtype))

    def _normal(self, outputs: Array) -> Normal:
        if self.std is not None:
            return Normal(outputs, jnp.full_like(outputs, math.log(self.std)))
        mean, log_std = jnp.split(outputs, 2, axis=-1)
        # On a pixel that never changes, the density would grow without bound as its standard deviation goes to 0.
        return Normal(mean, jnp.maximum(limit_above(log_std, MAX_LOG_SCALE), -6.0))


@dataclass(frozen=True)
class DiscretizedLogistic(Likelihood):
    """A mixture of logistic distributions for each pixel, discretized to the pixel's levels. Salimans et al. 2017.

    All channels of a pixel have the same mixture component, and are independent given the component.
    """

    levels: int = 256
    """Number of equally spaced values that a channel of a pixel can have. 256 for bytes."""
    components: int = 1
    """Number of mixture components. Colour images need more than 1, because channels are independent within a component."""

    def __post_init__(self):
        check_positive(**{"levels - 1": self.levels - 1, "components": self.components})

    def outputs(self, channels: int) -> int:
        return self.components * (1 + 2 * channels)

    def log_prob(self, outputs: Array, x: Array) -> Array:
        log_pi, mean, log_scale = self._parts(outputs)
        log_p = losses.discretized_logistic_log_prob(mean, log_scale, x[..., None, :], self.levels).sum(-1)
        return jax.nn.logsumexp(log_pi + log_p, axis=-1).sum((-2, -1))

    def mean(self, outputs: Array) -> Array:
        log_pi, mean, log_scale = self._parts(outputs)
        step = 2 / (self.levels - 1)

        # E[x] = 1 - step * sum of P(x < edge) over the edges between levels. A loop, so that memory does not grow with levels.
        def add_below(i: Array, total: Array) -> Array:
            return total + jax.nn.sigmoid((-1 + (i + 0.5) * step - mean) * jnp.exp(-log_scale))

        x = 1 - step * jax.lax.fori_loop(0, self.levels - 1, add_below, jnp.zeros_like(mean))
        return jnp.sum(jnp.exp(log_pi)[..., None] * x, axis=-2)

    def sample(self, outputs: Array, key: Key) -> Array:
        component, logistic = jax.random.split(key)
        log_pi, mean, log_scale = self._parts(outputs)
        index = jax.random.categorical(component, log_pi)[..., None, None]
        mean, log_scale = (jnp.take_along_axis(a, index, axis=-2)[..., 0, :] for a in (mean, log_scale))
        x = mean + jnp.exp(log_scale) * jax.random.logistic(logistic, mean.shape, mean.dtype)
        step = 2 / (self.levels - 1)
        # Clipping moves the tails to the first and the last level, whose cells extend to infinity.
        return jnp.clip(jnp.round((x + 1) / step) * step - 1, -1, 1)

    def mismatch(self, image: Feature) -> str | None:
        if image.levels != self.levels or image.dequantized:
            given = "dequantized pixels" if image.dequantized else f"pixels of {image.levels} levels"
            return f"DiscretizedLogistic(levels={self.levels}) is not a likelihood of {given}"
        return None

    def check(self, image: Feature) -> None:
        if reason := self.mismatch(image):
            raise UserError(f"{reason}; the fix: --model.likelihood.levels {image.levels}, without --data.dequantize")

    def _parts(self, outputs: Array) -> tuple[Array, Array, Array]:
        """Splits outputs into the M components' log weights [..., H, W, M], means and log scales [..., H, W, M, C]."""
        # A pixel's outputs are M mixture logits, then C means and C log scales for each component.
        m = self.components
        log_pi = jax.nn.log_softmax(outputs[..., :m], axis=-1)
        mean, log_scale = jnp.split(outputs[..., m:].reshape(*outputs.shape[:-1], m, -1), 2, axis=-1)
        # A narrower logistic has its whole mass in one level, so its gradient would vanish.
        return log_pi, mean, jnp.maximum(limit_above(log_scale, MAX_LOG_SCALE), -7.0)
