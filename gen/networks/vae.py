"""Encoders and decoders of variational autoencoders over a list of latent groups, top group first.

    q(z | x) = q(z_0 | x) q(z_1 | x, z_0) ...        Encoder
    p(x, z)  = p(z_0) p(z_1 | z_0) ... p(x | z)      Decoder, p(z_0) apart

One group is the plain VAE (Kingma and Welling 2014). In a hierarchy the decoder's features of the groups above, the
`context`, feed the prior of the next group, its posterior, and what comes below (Sønderby et al. 2016).
`Perceptron` and `Residual` say what both are made of.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_positive
from gen.networks.gaussian import Gaussian
from gen.networks.layers import ACTIVATIONS, Activation, Conv, Dense


class Encoder(nn.Module):
    """Images, and labels if any, to the parameters of q."""

    trunk: nn.Module
    latents: tuple[int, ...]
    hidden: int
    activation: Activation
    dtypes: dict[str, Any]

    def setup(self):
        self.heads = [
            Head(d, self.hidden if i else None, self.activation, self.dtypes) for i, d in enumerate(self.latents)
        ]

    def __call__(self, x: Array, label: Array | None) -> Array:
        """x: [B, H, W, C] in [-1, 1]; label: [B, classes] one-hot or None -> features [B, F]."""
        if label is not None:
            planes = jnp.broadcast_to(label[:, None, None, :], (*x.shape[:-1], label.shape[-1])).astype(x.dtype)
            x = jnp.concatenate([x, planes], axis=-1)
        return self.trunk(x)

    def posterior(self, features: Array, context: Array | None, prior: Gaussian | None, group: int) -> Gaussian:
        """q of a group. The top group has no context; those below are read relative to their prior (Vahdat and Kautz
        2020, section 3.2), so that what the image adds is what is learned.

        features: [K, B, F]; context: [K', B, F']; prior: [K', B, D] -> [K or K', B, D].
        """
        if context is None or prior is None:
            return self.heads[group](features)
        change = self.heads[group](joined(features, context))
        return Gaussian(prior.mean + jnp.exp(prior.log_std) * change.mean, prior.log_std + change.log_std)


class Decoder(nn.Module):
    """Latents, and labels if any, to the likelihood's outputs, and to the priors of the groups below the top."""

    trunk: nn.Module
    latents: tuple[int, ...]
    hidden: int
    activation: Activation
    dtypes: dict[str, Any]

    def setup(self):
        below = self.latents[1:]
        self.stages = [Hidden((self.hidden, self.hidden), self.activation, self.dtypes) for _ in below]
        self.heads = [Head(d, self.hidden, self.activation, self.dtypes) for d in below]

    def __call__(self, context: Array | None, z: Array, label: Array | None) -> Array:
        """context: [..., B, F] of the groups above the last; z: the last, [..., B, D]; label: [B, classes] or None
        -> outputs [..., B, H, W, outputs]."""
        return widened(self.trunk(joined(label, z if context is None else jnp.concatenate([context, z], axis=-1))))

    def context(self, above: Array | None, z: Array, group: int) -> Array:
        """Features of a group and of those above it, [..., B, F]."""
        return self.stages[group](z if above is None else jnp.concatenate([above, z], axis=-1))

    def prior(self, context: Array, group: int) -> Gaussian:
        """p of a group below the top, given the context of those above."""
        return self.heads[group - 1](context)


class Hidden(nn.Module):
    """Fully connected layers, each with its activation."""

    widths: tuple[int, ...]
    activation: Activation
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.widths:
            x = ACTIVATIONS[self.activation](Dense(width, **self.dtypes)(x))
        return x


class Head(nn.Module):
    """A Gaussian from features: a linear map, behind a hidden layer if `hidden` is set."""

    size: int
    hidden: int | None
    activation: Activation
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Gaussian:
        if self.hidden is not None:
            x = Hidden((self.hidden,), self.activation, self.dtypes)(x)
        mean, log_std = jnp.split(widened(Dense(2 * self.size, **self.dtypes)(x)), 2, axis=-1)
        return Gaussian(mean, jnp.clip(log_std, -8.0, 4.0))


def widened(x: Array) -> Array:
    """At least float32: log-probabilities are sums of many terms."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def joined(fixed: Array | None, x: Array) -> Array:
    """[K or none, B, F] and [..., B, D] side by side, [..., B, F + D]."""
    if fixed is None:
        return x
    return jnp.concatenate([jnp.broadcast_to(fixed, (*x.shape[:-1], fixed.shape[-1])).astype(x.dtype), x], axis=-1)


@dataclass(frozen=True)
class Architecture:
    """What an encoder and a decoder are made of."""

    def encoder(self, latents: tuple[int, ...], dtypes: dict[str, Any]) -> Encoder:
        raise NotImplementedError

    def decoder(self, latents: tuple[int, ...], shape: tuple[int, ...], dtypes: dict[str, Any]) -> Decoder:
        """For outputs of `shape` [H, W, outputs]."""
        raise NotImplementedError

    def tiny(self) -> Architecture:
        raise NotImplementedError


@dataclass(frozen=True)
class Perceptron(Architecture):
    """Fully connected layers."""

    hidden: tuple[int, ...] = (400,)
    """Widths of the encoder's hidden layers; the decoder has them in reverse."""
    activation: Activation = "relu"
    """Between layers."""

    def __post_init__(self):
        check_positive(**{"the least width of hidden": min(self.hidden, default=0)})

    def encoder(self, latents: tuple[int, ...], dtypes: dict[str, Any]) -> Encoder:
        trunk = DenseDown(self.hidden, self.activation, dtypes)
        return Encoder(trunk, latents, self.hidden[-1], self.activation, dtypes)

    def decoder(self, latents: tuple[int, ...], shape: tuple[int, ...], dtypes: dict[str, Any]) -> Decoder:
        trunk = DenseUp(self.hidden[::-1], shape, self.activation, dtypes)
        return Decoder(trunk, latents, self.hidden[-1], self.activation, dtypes)

    def tiny(self) -> Perceptron:
        return Perceptron((16,) * min(2, len(self.hidden)), self.activation)


@dataclass(frozen=True)
class Residual(Architecture):
    """Convolutions: each stage halves (the decoder: doubles) the resolution and has residual blocks (He et al. 2016)."""

    widths: tuple[int, ...] = (32, 64)
    """Channels of each stage; 8 pixels suit one or two stages, 64 pixels four."""
    blocks: int = 1
    """Residual blocks a stage; 0: the strided convolutions alone, with the activation between them."""
    activation: Activation = "silu"
    """Before each convolution of a block."""
    hidden: int = 256
    """Width of the hidden layer between latent groups."""

    def __post_init__(self):
        check_positive(**{"the least of widths": min(self.widths, default=0), "hidden": self.hidden})
        if self.blocks < 0:
            raise UserError(f"blocks is {self.blocks}; it counts blocks a stage, so at least 0")

    def encoder(self, latents: tuple[int, ...], dtypes: dict[str, Any]) -> Encoder:
        trunk = ResidualDown(self.widths, self.blocks, self.activation, dtypes)
        return Encoder(trunk, latents, self.hidden, self.activation, dtypes)

    def decoder(self, latents: tuple[int, ...], shape: tuple[int, ...], dtypes: dict[str, Any]) -> Decoder:
        if min(shape[:2]) < 2 ** len(self.widths):
            raise UserError(
                f"{len(self.widths)} stages halve {shape[0]}x{shape[1]} pixels to nothing; use fewer widths"
            )
        trunk = ResidualUp(self.widths, self.blocks, shape, self.activation, dtypes)
        return Decoder(trunk, latents, self.hidden, self.activation, dtypes)

    def tiny(self) -> Residual:
        return Residual((4,) * len(self.widths), 1, self.activation, 16)


class DenseDown(nn.Module):
    hidden: tuple[int, ...]
    activation: Activation
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, F]."""
        return Hidden(self.hidden, self.activation, self.dtypes)(x.reshape(x.shape[0], -1))


class DenseUp(nn.Module):
    hidden: tuple[int, ...]
    shape: tuple[int, ...]
    activation: Activation
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[..., D] -> [..., *shape]."""
        z = Hidden(self.hidden, self.activation, self.dtypes)(z)
        return Dense(math.prod(self.shape), **self.dtypes)(z).reshape(*z.shape[:-1], *self.shape)


class ResidualDown(nn.Module):
    widths: tuple[int, ...]
    blocks: int
    activation: Activation
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, F]."""
        for i, width in enumerate(self.widths):
            if i and not self.blocks:
                x = ACTIVATIONS[self.activation](x)
            x = Conv(width, 4, 2, **self.dtypes)(x)
            for _ in range(self.blocks):
                x = Block(self.activation, self.dtypes)(x)
        return ACTIVATIONS[self.activation](x).reshape(x.shape[0], -1)


class ResidualUp(nn.Module):
    widths: tuple[int, ...]
    blocks: int
    shape: tuple[int, ...]
    activation: Activation
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """[..., D] -> [..., *shape]."""
        height, width, outputs = self.shape
        lead = z.shape[:-1]
        # Sizes on the way down, e.g. 28, 14, 7, 4: an odd one is reached by cropping.
        sizes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(len(self.widths) + 1)]
        h, w = sizes[-1]
        x = Dense(h * w * self.widths[-1], **self.dtypes)(z).reshape(-1, h, w, self.widths[-1])
        for (h, w), out in zip(sizes[-2::-1], (*self.widths[-2::-1], outputs), strict=True):
            for _ in range(self.blocks):
                x = Block(self.activation, self.dtypes)(x)
            x = ACTIVATIONS[self.activation](x)
            x = Conv(out, 4, 2, transposed=True, **self.dtypes)(x)[:, :h, :w, :]
        return x.reshape(*lead, height, width, outputs)


class Block(nn.Module):
    """x + f(x), f of two 3x3 convolutions, zero at the start."""

    activation: Activation
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act, width = ACTIVATIONS[self.activation], x.shape[-1]
        y = Conv(width, 3, **self.dtypes)(act(x))
        return x + Conv(width, 3, kernel_init=nn.initializers.zeros, **self.dtypes)(act(y))
