"""Losses between an example and its reconstruction: distances of pixels, or the likelihoods of gen.families.vae."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp

from gen.core import Array, Feature
from gen.families.vae.likelihoods import Bernoulli
from gen.families.vae.likelihoods import Likelihood as PixelLikelihood


@dataclass(frozen=True)
class Reconstruction:
    """Base class of reconstruction losses, which also convert the decoder's outputs to reconstructions.

    Subclass it to add a loss.
    """

    def outputs(self, channels: int) -> int:
        """Returns the number of decoder outputs for each pixel. channels: number of channels of a pixel."""
        return channels

    def loss(self, outputs: Array, x: Array) -> Array:
        """Returns the loss of each example, [B]: a mean over its pixels (or samples of sound) and channels.

        outputs: the decoder's outputs [B, *axes, outputs]; x: the examples [B, *axes, C].
        """
        raise NotImplementedError

    def show(self, outputs: Array) -> Array:
        """Converts the decoder's outputs [B, *axes, outputs] to reconstructions [B, *axes, C]."""
        return outputs

    def check(self, feature: Feature) -> None:
        """Checks that `loss` can be computed on this feature. Raises: UserError if it can't."""

    def suit(self, feature: Feature) -> Reconstruction:
        """Returns this loss with settings filled in from the data, such as the sample rate."""
        return self

    def tiny(self) -> Reconstruction:
        """Returns a loss of the same kind that is quick to compute, for tests. By default the loss itself."""
        return self


@dataclass(frozen=True)
class L1(Reconstruction):
    """The mean absolute difference of an example and its reconstruction."""

    def loss(self, outputs: Array, x: Array) -> Array:
        return jnp.abs(outputs - x).mean(range(1, x.ndim))


@dataclass(frozen=True)
class L2(Reconstruction):
    """The mean squared difference, which PSNR measures too: as the only loss term, it gives the best PSNR."""

    def loss(self, outputs: Array, x: Array) -> Array:
        return jnp.square(outputs - x).mean(range(1, x.ndim))


@dataclass(frozen=True)
class Likelihood(Reconstruction):
    """-log p(x | z) in nats, divided by the number of pixels times channels. Reconstructions are means of p(x | z)."""

    p: PixelLikelihood = Bernoulli()
    """Likelihood p(x | z), one of gen.families.vae."""

    def outputs(self, channels: int) -> int:
        return self.p.outputs(channels)

    def loss(self, outputs: Array, x: Array) -> Array:
        return -self.p.log_prob(outputs, x) / math.prod(x.shape[1:])

    def show(self, outputs: Array) -> Array:
        return self.p.mean(outputs)

    def check(self, feature: Feature) -> None:
        self.p.check(feature)
