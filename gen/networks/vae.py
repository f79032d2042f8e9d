"""Encoders and decoders of variational autoencoders over a list of latent groups, top group first.

    q(z | x) = q(z_0 | x) q(z_1 | x, z_0) ...        Encoder
    p(x, z)  = p(z_0) p(z_1 | z_0) ... p(x | z)      Decoder, except p(z_0), see gen.families.vae.priors

One group is the plain VAE (Kingma and Welling 2014). In a hierarchy (Sønderby et al. 2016) the decoder computes features of
all groups above a group, called its context. The prior and the posterior of the group read the context.
A config chooses the layers with an `Architecture`: `Perceptron` or `Residual`.
"""

from __future__ import annotations

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_positive
from gen.networks.dtypes import Dtypes, widen
from gen.networks.gaussian import Gaussian
from gen.networks.layers import Activation, Dense
from gen.networks.limits import limit_size
from gen.networks.vae_trunks import DenseDown, DenseUp, Hidden, ResidualDown, ResidualUp

MAX_MEAN = 20.0
"""Soft limit on the size of the means of latents: means up to it are unchanged, and larger ones stay below twice the limit. Trained
means are mostly below 5, because a mean of 20 standard deviations of the prior costs 200 nats."""


class Encoder(nn.Module):
    """q(z | x): maps images, with or without labels, to a Gaussian for each latent group.

    `__call__` computes features of an image once. `posterior` then maps them to the Gaussian of a group.
    """

    trunk: nn.Module
    """Images [B, H, W, C] -> features [B, F]."""
    latents: tuple[int, ...]
    """Number of dimensions of each group."""
    hidden: int
    """Width of the hidden layer in the heads of the groups below the top."""
    activation: Activation
    dtypes: Dtypes

    def setup(self):
        # Below the top, a head needs a hidden layer to combine features and context.
        self.heads = [
            Head(d, self.hidden if i else None, self.activation, self.dtypes) for i, d in enumerate(self.latents)
        ]

    def __call__(self, x: Array, label: Array | None) -> Array:
        """Returns features [B, F]. x: [B, H, W, C] in [-1, 1]; label: one-hot [B, classes] or None."""
        if label is not None:
            # Convolutions need the label at each pixel: one constant channel for each class.
            planes = jnp.broadcast_to(label[:, None, None, :], (*x.shape[:-1], label.shape[-1])).astype(x.dtype)
            x = jnp.concatenate([x, planes], axis=-1)
        return self.trunk(x)

    def posterior(self, features: Array, context: Array | None, prior: Gaussian | None, group: int) -> Gaussian:
        """Returns the posterior of a latent group given the groups above it, [K, B, D] for K samples of each example.

        features: from `__call__`, with an axis for the samples, [K or 1, B, F]. context: `Decoder.context` of the
        groups above, [K, B, F']. prior: `Decoder.prior` of this group, [K, B, D]. Both are None for the top group,
        whose posterior has the leading axes of `features`. group: index of the group; 0 is the top.
        """
        if context is None or prior is None:
            return self.heads[group](features)
        # Below the top, the head predicts the difference to the prior (Vahdat and Kautz 2020, section 3.2).
        change = self.heads[group](concatenate(features, context))
        return Gaussian(prior.mean + jnp.exp(prior.log_std) * change.mean, prior.log_std + change.log_std)


class Decoder(nn.Module):
    """p(x | z) and p(z_i | z_0 ... z_{i-1}): maps latents, and labels if there are any, to the parameters of a likelihood."""

    trunk: nn.Module
    """Label, context and latents, concatenated to [..., F] -> outputs [..., H, W, outputs]."""
    latents: tuple[int, ...]
    """Number of dimensions of each group."""
    hidden: int
    """Number of features in a context, and width of all hidden layers between groups."""
    activation: Activation
    dtypes: Dtypes

    def setup(self):
        # stages[i] computes the context below group i, which the last group does not need. The top group needs no head.
        below = self.latents[1:]
        self.stages = [Hidden((self.hidden, self.hidden), self.activation, self.dtypes) for _ in below]
        self.heads = [Head(d, self.hidden, self.activation, self.dtypes) for d in below]

    def __call__(self, context: Array | None, z: Array, label: Array | None) -> Array:
        """Returns outputs [..., B, H, W, outputs], at least float32.

        context: features of all groups except the last, [..., B, F], or None if there is one group; z: latents of the last
        group, [..., B, D]; label: one-hot [B, classes] or None.
        """
        inputs = z if context is None else jnp.concatenate([context, z], axis=-1)
        return widen(self.trunk(concatenate(label, inputs)))

    def context(self, above: Array | None, z: Array, group: int) -> Array:
        """Returns features of a group and of all groups above it, [..., B, F]: the context of the next group.

        above: the context of this group, [..., B, F], or None for the top group. z: latents of this group, [..., B, D].
        group: index of this group; 0 is the top.
        """
        return self.stages[group](z if above is None else jnp.concatenate([above, z], axis=-1))

    def prior(self, context: Array, group: int) -> Gaussian:
        """Returns the prior of a group below the top, a Gaussian [..., B, D].

        context: `context` of the groups above, [..., B, F]. group: index of the group, at least 1.
        """
        return self.heads[group - 1](context)


class Head(nn.Module):
    """Maps features [..., F] to a Gaussian [..., D]."""

    size: int
    """D, number of dimensions of the Gaussian."""
    hidden: int | None
    """Width of the hidden layer. None: the map is linear."""
    activation: Activation
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        if self.hidden is not None:
            x = Hidden((self.hidden,), self.activation, self.dtypes)(x)
        mean, log_std = jnp.split(widen(Dense(2 * self.size, **self.dtypes)(x)), 2, axis=-1)
        # Without limits, one extreme output makes the KL dominate the batch, or infinite.
        return Gaussian(limit_size(mean, MAX_MEAN), jnp.clip(log_std, -8.0, 4.0))


def concatenate(fixed: Array | None, x: Array) -> Array:
    """Broadcasts `fixed` to the leading axes of x, and joins both along the last axis: [..., B, F + D].

    fixed: [B, F], [1, B, F] or [K, B, F]. None: returns x. x: [..., B, D].
    """
    if fixed is None:
        return x
    # Features and labels may have no axis of samples, or one of size 1, where x has K samples.
    return jnp.concatenate([jnp.broadcast_to(fixed, (*x.shape[:-1], fixed.shape[-1])).astype(x.dtype), x], axis=-1)


@dataclass(frozen=True)
class Architecture:
    """The kind and the sizes of the layers of an encoder and a decoder. Subclass it to add a kind."""

    def encoder(self, latents: tuple[int, ...], dtypes: Dtypes) -> Encoder:
        """Returns the encoder. latents: number of dimensions of each latent group."""
        raise NotImplementedError

    def decoder(self, latents: tuple[int, ...], shape: tuple[int, ...], dtypes: Dtypes) -> Decoder:
        """Returns the decoder. Raises: UserError if its layers can't make images of this height and width.

        latents: number of dimensions of each latent group. shape: (H, W, outputs for each pixel).
        """
        raise NotImplementedError

    def tiny(self) -> Architecture:
        """Returns the same architecture with the smallest sizes, for tests."""
        raise NotImplementedError


@dataclass(frozen=True)
class Perceptron(Architecture):
    """An encoder and a decoder of fully connected layers."""

    hidden: tuple[int, ...] = (400,)
    """Widths of the encoder's hidden layers. The decoder has them in reverse order."""
    activation: Activation = "relu"
    """Activation after each hidden layer."""

    def __post_init__(self):
        check_positive(**{"the smallest width in hidden": min(self.hidden, default=0)})

    def encoder(self, latents: tuple[int, ...], dtypes: Dtypes) -> Encoder:
        trunk = DenseDown(self.hidden, self.activation, dtypes)
        return Encoder(trunk, latents, self.hidden[-1], self.activation, dtypes)

    def decoder(self, latents: tuple[int, ...], shape: tuple[int, ...], dtypes: Dtypes) -> Decoder:
        trunk = DenseUp(self.hidden[::-1], shape, self.activation, dtypes)
        return Decoder(trunk, latents, self.hidden[-1], self.activation, dtypes)

    def tiny(self) -> Perceptron:
        return Perceptron((16,) * min(2, len(self.hidden)), self.activation)


@dataclass(frozen=True)
class Residual(Architecture):
    """An encoder and a decoder of convolutions in stages, with residual blocks (He et al. 2016).

    A stage of the encoder halves the resolution, and a stage of the decoder doubles it.
    """

    widths: tuple[int, ...] = (32, 64)
    """Channels of each stage. Images of 8x8 pixels suit one or two stages, images of 64x64 pixels four."""
    blocks: int = 1
    """Residual blocks in each stage. 0: only strided convolutions, with the activation between them."""
    activation: Activation = "silu"
    """Activation before each convolution of a block."""
    hidden: int = 256
    """Width of the hidden layers that connect the latent groups. Not used with one group."""

    def __post_init__(self):
        check_positive(**{"the smallest of widths": min(self.widths, default=0), "hidden": self.hidden})
        if self.blocks < 0:
            raise UserError(f"blocks is {self.blocks}; the number of blocks of a stage must be at least 0")

    def encoder(self, latents: tuple[int, ...], dtypes: Dtypes) -> Encoder:
        trunk = ResidualDown(self.widths, self.blocks, self.activation, dtypes)
        return Encoder(trunk, latents, self.hidden, self.activation, dtypes)

    def decoder(self, latents: tuple[int, ...], shape: tuple[int, ...], dtypes: Dtypes) -> Decoder:
        if min(shape[:2]) < 2 ** len(self.widths):
            raise UserError(
                f"{shape[0]}x{shape[1]} pixels are too small for {len(self.widths)} stages, each of which halves them; use fewer widths"
            )
        trunk = ResidualUp(self.widths, self.blocks, shape, self.activation, dtypes)
        return Decoder(trunk, latents, self.hidden, self.activation, dtypes)

    def tiny(self) -> Residual:
        return Residual((4,) * len(self.widths), 1, self.activation, 16)
