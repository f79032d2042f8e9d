"""The layers of encoders and decoders of variational autoencoders: fully connected, or residual convolutions."""

from __future__ import annotations

import math

import flax.linen as nn

from gen.core import Array
from gen.networks.dtypes import Dtypes
from gen.networks.layers import ACTIVATIONS, Activation, Conv, Dense


class Hidden(nn.Module):
    """Fully connected layers, each followed by the activation."""

    widths: tuple[int, ...]
    activation: Activation
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for width in self.widths:
            x = ACTIVATIONS[self.activation](Dense(width, **self.dtypes)(x))
        return x


class DenseDown(nn.Module):
    """Trunk of the encoder of a `gen.networks.vae.Perceptron`: fully connected layers over all pixels."""

    hidden: tuple[int, ...]
    activation: Activation
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps images [B, H, W, C] to features [B, F]."""
        return Hidden(self.hidden, self.activation, self.dtypes)(x.reshape(x.shape[0], -1))


class DenseUp(nn.Module):
    """Trunk of the decoder of a `gen.networks.vae.Perceptron`: fully connected layers.

    shape: (H, W, number of outputs for each pixel). The outputs are the parameters of the likelihood.
    """

    hidden: tuple[int, ...]
    shape: tuple[int, ...]
    activation: Activation
    dtypes: Dtypes

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps latents [..., D] to outputs [..., H, W, outputs]."""
        z = Hidden(self.hidden, self.activation, self.dtypes)(z)
        return Dense(math.prod(self.shape), **self.dtypes)(z).reshape(*z.shape[:-1], *self.shape)


class ResidualDown(nn.Module):
    """Trunk of the encoder of a `gen.networks.vae.Residual`: in each stage a strided convolution, then blocks."""

    widths: tuple[int, ...]
    blocks: int
    activation: Activation
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps images [B, H, W, C] to features [B, F]."""
        for i, width in enumerate(self.widths):
            # Blocks begin with an activation. Without blocks, it is needed between the convolutions.
            if i and not self.blocks:
                x = ACTIVATIONS[self.activation](x)
            x = Conv(width, 4, 2, **self.dtypes)(x)
            for _ in range(self.blocks):
                x = Block(self.activation, self.dtypes)(x)
        return ACTIVATIONS[self.activation](x).reshape(x.shape[0], -1)


class ResidualUp(nn.Module):
    """Trunk of the decoder of a `gen.networks.vae.Residual`: in each stage blocks, then a transposed convolution.

    widths: channels of each stage of the encoder; the decoder has them in reverse order. shape: (H, W, number of outputs
    for each pixel).
    """

    widths: tuple[int, ...]
    blocks: int
    shape: tuple[int, ...]
    activation: Activation
    dtypes: Dtypes

    @nn.compact
    def __call__(self, z: Array) -> Array:
        """Maps latents [..., D] to outputs [..., H, W, outputs]."""
        height, width, outputs = self.shape
        # Convolutions take one batch axis, so all leading axes are merged.
        lead = z.shape[:-1]
        # The encoder's sizes, e.g. 28, 14, 7, 4. A transposed convolution doubles, so an odd size is cropped: 4 -> 8 -> 7.
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
    """A residual block, x + f(x), where f has two 3x3 convolutions."""

    activation: Activation
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        act, width = ACTIVATIONS[self.activation], x.shape[-1]
        y = Conv(width, 3, **self.dtypes)(act(x))
        # f is 0 at step 0, so a deep stack begins as the identity.
        return x + Conv(width, 3, kernel_init=nn.initializers.zeros, **self.dtypes)(act(y))
