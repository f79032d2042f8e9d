"""Discriminators: networks from images [B, H, W, C], and labels if there are any, to scores [B] and features [B, F].

With conditioning "concatenation" a label is joined to the image as constant planes. With "projection" the score gets the
inner product of the features and an embedding of the label (Miyato and Koyama 2018).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_decay, check_not_negative, check_positive
from gen.networks import layers
from gen.networks.dtypes import Dtypes
from gen.networks.generator import Conditioning
from gen.networks.layers import (
    Conv,
    MinibatchDiscrimination,
    Norm,
    SelfAttention,
    check_attention,
    dropout,
    leaky_relu,
    spectral_norm,
)

MINIBATCH_DIMS = 5
"""Dimensions in which a kernel of minibatch discrimination measures distances."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Kind and sizes of a discriminator. Subclass it to add one."""

    spectral: bool = False
    """Spectral normalization of all layers (Miyato et al. 2018)."""
    dropout: float = 0.0
    """Fraction of hidden units that dropout sets to 0."""
    minibatch: int = 0
    """Number of kernels of minibatch discrimination over the global batch (Salimans et al. 2016). 0: none."""

    def __post_init__(self):
        check_decay(dropout=self.dropout)
        if self.minibatch < 0:
            raise UserError(f"minibatch is {self.minibatch}; it must be a number of kernels, or 0 for none")

    def couplings(self) -> dict[str, str]:
        """Returns why a score depends on other examples of the batch, {cause: the option that avoids it}. {}: it does not."""
        return {"minibatch discrimination": "minibatch 0"} if self.minibatch else {}

    def trunk(self, dtypes: Dtypes) -> nn.Module:
        """Returns the module `(x [B, H, W, C], label [B, classes] or None, keys, train) -> features [B, F]`.

        label: None if it is not joined to the image. keys: [B], for `dropout`.
        """
        raise NotImplementedError

    def tiny(self) -> Architecture:
        """Returns the same kind with the smallest sizes, for tests."""
        raise NotImplementedError


@dataclass(frozen=True)
class Perceptron(Architecture):
    """Fully connected layers with LeakyReLU."""

    widths: tuple[int, ...] = (1024, 512, 256)
    """Units of the hidden layers."""

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.widths)

    def trunk(self, dtypes: Dtypes) -> nn.Module:
        return Dense(self, dtypes)

    def tiny(self) -> Perceptron:
        return replace(self, widths=(8,) * len(self.widths), minibatch=min(self.minibatch, 2))


@dataclass(frozen=True)
class DCGAN(Architecture):
    """Strided convolutions with LeakyReLU. Radford et al. 2016.

    The defaults with dropout 0.3 are the 28x28 form of TensorFlow's tutorial. Widths (128, 256, 512, 1024) with norm batch are
    the discriminator of the paper.
    """

    widths: tuple[int, ...] = (64, 128)
    """Channels of the convolutions, which have stride 2."""
    kernel: int = 5
    """Side of the kernels."""
    norm: Literal["batch", "layer", "none"] = "none"
    """Normalization of all layers except the first."""

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.widths)
        check_positive(kernel=self.kernel)

    def couplings(self) -> dict[str, str]:
        return super().couplings() | ({"batch normalization": "norm layer"} if self.norm == "batch" else {})

    def trunk(self, dtypes: Dtypes) -> nn.Module:
        return Strided(self, dtypes)

    def tiny(self) -> DCGAN:
        return replace(self, widths=(4,) * len(self.widths), kernel=3, minibatch=min(self.minibatch, 2))


@dataclass(frozen=True)
class Residual(Architecture):
    """Residual blocks, then a sum over positions. Miyato et al. 2018, table 4 (for 32x32 images, with `spectral`)."""

    widths: tuple[int, ...] = (128, 128, 128, 128)
    """Channels of each block."""
    halvings: int = 2
    """Number of blocks, from the first, that halve the side."""
    attention: tuple[int, ...] = ()
    """Numbers of the blocks, from 1, that self-attention follows."""

    def __post_init__(self):
        super().__post_init__()
        check_widths(self.widths)
        check_attention(self.attention, len(self.widths))
        check_not_negative(halvings=self.halvings)

    def trunk(self, dtypes: Dtypes) -> nn.Module:
        return Blocks(self, dtypes)

    def tiny(self) -> Residual:
        return replace(self, widths=(4,) * len(self.widths), minibatch=min(self.minibatch, 2))


def check_widths(widths: tuple[int, ...]) -> None:
    """Raises: UserError if one of a discriminator's widths is not above 0."""
    check_positive(**{"the discriminator's width": min(widths, default=1)})


class Discriminator(nn.Module):
    """A trunk that makes features, and the score that is read from them."""

    arch: Architecture
    conditioning: Conditioning | None
    bias: bool
    """Whether the layer of the score has a bias."""
    dtypes: Dtypes

    @nn.compact
    def __call__(
        self, x: Array, label: Array | None, keys: Array | None, train: bool, weight: Array | None = None
    ) -> tuple[Array, Array]:
        """Returns scores [B] and features [B, F].

        x: [B, H, W, C]. label: [B, classes] one-hot or None. keys: [B], for the noise of dropout. None: no dropout. weight: [B], 0 for
        padding, which changes no score of another example. None: no padding.
        """
        projected, joined = (label, None) if self.conditioning == "projection" else (None, label)
        features = self.arch.trunk(self.dtypes)(x, joined, keys, train)
        # Only the score reads the closeness to other examples. Projection and feature matching use the features without it.
        read = features
        if self.arch.minibatch:
            read = MinibatchDiscrimination(self.arch.minibatch, MINIBATCH_DIMS, self.dtypes)(features, weight)
        scores = self.linear(read, 1, self.bias, train)[:, 0]
        if projected is not None:
            embedding = self.linear(projected.astype(features.dtype), features.shape[-1], False, train)
            scores += (embedding * features).sum(-1)
        return scores, features

    def linear(self, x: Array, size: int, bias: bool, train: bool) -> Array:
        """Returns a linear map of x [B, F], [B, size]."""
        return spectral_norm(layers.Dense(size, use_bias=bias, **self.dtypes), self.arch.spectral, train)(x)


class Dense(nn.Module):
    """Trunk of a `Perceptron`: a multilayer perceptron, [B, H, W, C] -> features [B, widths[-1]]."""

    arch: Perceptron
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        x = x.reshape(x.shape[0], -1)
        if label is not None:
            x = jnp.concatenate([x, label.astype(x.dtype)], axis=-1)
        for i, width in enumerate(self.arch.widths):
            x = spectral_norm(layers.Dense(width, **self.dtypes), self.arch.spectral, train)(x)
            x = dropout(leaky_relu(x), keys, i, self.arch.dropout)
        return x


class Strided(nn.Module):
    """Trunk of a `DCGAN`: strided convolutions, [B, H, W, C] -> features [B, F] of all positions and channels."""

    arch: DCGAN
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        arch, x = self.arch, append_planes(x, label)
        # Radford et al. 2016 draw all weights from N(0, 0.02^2).
        init = nn.initializers.normal(0.02)
        for i, width in enumerate(arch.widths):
            # The first layer has no normalization, so that D sees the range of the pixels (Radford et al. 2016).
            has_norm = arch.norm != "none" and i > 0
            conv = Conv(width, arch.kernel, 2, use_bias=not has_norm, kernel_init=init, **self.dtypes)
            x = spectral_norm(conv, arch.spectral, train)(x)
            if has_norm:
                x = Norm(arch.norm, self.dtypes)(x, None, train)
            x = dropout(leaky_relu(x), keys, i, arch.dropout)
        return x.reshape(x.shape[0], -1)


class Blocks(nn.Module):
    """Trunk of a `Residual`: residual blocks, then a sum over positions, [B, H, W, C] -> features [B, widths[-1]]."""

    arch: Residual
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, label: Array | None, keys: Array | None, train: bool) -> Array:
        x = append_planes(x, label)
        for i in range(1, len(self.arch.widths) + 1):
            x = self.block(x, i, train)
            if i in self.arch.attention:
                x = SelfAttention(self.arch.spectral, self.dtypes)(x, train)
        # A sum over positions instead of a mean, as published.
        return dropout(nn.relu(x).sum((1, 2)), keys, 0, self.arch.dropout)

    def block(self, x: Array, i: int, train: bool) -> Array:
        """Returns the output of block i, from 1: [B, H, W, width], or with half the sides."""
        width, halves = self.arch.widths[i - 1], i <= self.arch.halvings
        # The first block reads pixels, which need no activation before.
        y = self.conv(nn.relu(x) if i > 1 else x, width, 3, train)
        y = self.conv(nn.relu(y), width, 3, train)
        if not halves:
            return y + (x if width == x.shape[-1] else self.conv(x, width, 1, train))
        # The shortcut of the first block halves before its convolution, because an image has few channels. The others
        # convolve first, as published.
        if i == 1:
            return downsample(y) + self.conv(downsample(x), width, 1, train)
        return downsample(y) + downsample(self.conv(x, width, 1, train))

    def conv(self, x: Array, width: int, side: int, train: bool) -> Array:
        """Returns a convolution of x, [B, H, W, width]."""
        layer = Conv(width, side, kernel_init=nn.initializers.xavier_uniform(), **self.dtypes)
        return spectral_norm(layer, self.arch.spectral, train)(x)


def append_planes(x: Array, label: Array | None) -> Array:
    """Returns x [B, H, W, C] with the label [B, classes] as constant channels, [B, H, W, C + classes]."""
    if label is None:
        return x
    # A convolution must see the label at each position.
    planes = jnp.broadcast_to(label[:, None, None, :], (*x.shape[:-1], label.shape[-1])).astype(x.dtype)
    return jnp.concatenate([x, planes], axis=-1)


def downsample(x: Array) -> Array:
    """Returns means of 2x2 pixels of x [B, H, W, C], [B, ceil(H / 2), ceil(W / 2), C]."""
    return nn.avg_pool(x, (2, 2), (2, 2), padding="SAME", count_include_pad=False)
