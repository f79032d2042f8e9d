"""Generators: networks that map latents [B, D], with or without labels, to images [B, H, W, C] in [-1, 1].

With conditioning "concatenation", a label is appended to the latents. With "projection", it scales and shifts the outputs of the
normalizations (conditional batch normalization).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_positive
from gen.networks import layers
from gen.networks.dtypes import Dtypes
from gen.networks.layers import ACTIVATIONS, Activation, Conv, Norm, Normalization, SelfAttention, check_attention
from gen.networks.virtual_batch_norm import ReferencedGenerator

Conditioning = Literal["concatenation", "projection"]
"""How a network reads labels: see the docstrings of gen.networks.generator and gen.networks.discriminator."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Kind and sizes of a generator. Subclass it to add a kind."""

    norm: Normalization = "batch"
    """Where the mean and variance that normalize hidden layers come from. batch: the global batch. layer: each example. virtual: a fixed
    reference batch and the example. none: no normalization."""

    def build(self, shape: tuple[int, ...], conditioning: Conditioning | None, dtypes: Dtypes) -> nn.Module:
        """Returns the module `(z [B, D], label [B, classes] or None, train) -> images [B, *shape] in [-1, 1]`.

        shape: height, width, channels. conditioning: how labels are read; None: without labels. train: whether batch
        normalization uses the batch's moments. Raises: UserError if this generator cannot make images of that shape.
        """
        raise NotImplementedError

    def tiny(self) -> Architecture:
        """Returns a generator of the same kind with very small layers, for tests."""
        raise NotImplementedError


@dataclass(frozen=True)
class Perceptron(Architecture):
    """A generator of fully connected layers."""

    widths: tuple[int, ...] = (128, 256, 512, 1024)
    """Number of units of each hidden layer."""
    activation: Activation = "leaky_relu"
    """Activation of the hidden layers."""

    def __post_init__(self):
        check_positive(**{"the generator's width": min(self.widths, default=1)})

    def build(self, shape: tuple[int, ...], conditioning: Conditioning | None, dtypes: Dtypes) -> nn.Module:
        return with_references(self, Dense(self, shape, conditioning, dtypes))

    def tiny(self) -> Perceptron:
        return replace(self, widths=(8,) * len(self.widths))


@dataclass(frozen=True)
class DCGAN(Architecture):
    """A dense layer to a small image, called the projection, then transposed convolutions. Radford et al. 2016.

    The defaults are the 28x28 form of TensorFlow's tutorial. Widths (1024, 512, 256, 128) with strides (2, 2, 2, 2) are the
    64x64 generator of the paper.
    """

    widths: tuple[int, ...] = (256, 128, 64)
    """Channels of the projection, and of each transposed convolution except the last."""
    strides: tuple[int, ...] = (1, 2, 2)
    """Stride of each transposed convolution. The height and width of the image must be multiples of the product of the strides."""
    kernel: int = 5
    """Height and width of the kernels, in pixels."""
    activation: Activation = "leaky_relu"
    """Activation of the hidden layers."""

    def __post_init__(self):
        check_positive(**{"the generator's width": min(self.widths, default=0), "kernel": self.kernel})
        check_positive(**{"the generator's stride": min(self.strides, default=1)})
        if len(self.widths) != len(self.strides):
            raise UserError(
                f"the generator has {len(self.widths)} widths and {len(self.strides)} strides; give one stride for each width"
            )

    def build(self, shape: tuple[int, ...], conditioning: Conditioning | None, dtypes: Dtypes) -> nn.Module:
        base = base_size(shape, math.prod(self.strides))
        return with_references(self, Transposed(self, shape, base, conditioning, dtypes))

    def tiny(self) -> DCGAN:
        return replace(self, widths=(4,) * len(self.widths), kernel=3)


@dataclass(frozen=True)
class Residual(Architecture):
    """A dense layer to a small image, called the projection, then residual blocks, each of which doubles height and width.

    Miyato et al. 2018, table 4.

    Widths (256, 256, 256, 256) make 32x32 from 4x4, (256, 256, 256) make 28x28 from 7x7, and (1024, 512, 256, 128, 64) make
    64x64.
    """

    widths: tuple[int, ...] = (256, 256, 256, 256)
    """Channels of the projection, then of each block."""
    attention: tuple[int, ...] = ()
    """Self-attention follows these blocks, which are numbered from 1. (): no self-attention."""

    def __post_init__(self):
        check_positive(**{"the generator's width": min(self.widths, default=0)})
        check_attention(self.attention, len(self.widths) - 1)

    def build(self, shape: tuple[int, ...], conditioning: Conditioning | None, dtypes: Dtypes) -> nn.Module:
        base = base_size(shape, 2 ** (len(self.widths) - 1))
        return with_references(self, Blocks(self, shape, base, conditioning, dtypes))

    def tiny(self) -> Residual:
        return replace(self, widths=(4,) * len(self.widths))


def base_size(shape: tuple[int, ...], factor: int) -> tuple[int, int]:
    """Returns (height / factor, width / factor) for a shape (height, width, channels): the size of the projection.

    Raises: UserError if the height or the width is not a multiple of `factor`.
    """
    height, width, _ = shape
    if height % factor or width % factor:
        # The message names the nearest side that works.
        side = max(factor, round(min(height, width) / factor) * factor)
        raise UserError(
            f"this generator enlarges by {factor}, so it cannot make {height}x{width} images; "
            f"the fix: --data.size {side}, or other --model.generator.widths (or strides)"
        )
    return height // factor, width // factor


def with_references(arch: Architecture, generator: nn.Module) -> nn.Module:
    """Returns the generator, or a `ReferencedGenerator` around it if `arch` has virtual batch normalization."""
    return ReferencedGenerator(generator) if arch.norm == "virtual" else generator


def join_label(z: Array, label: Array | None, conditioning: Conditioning | None) -> tuple[Array, Array | None]:
    """Returns (input of the first layer, label for the normalizations), so that one of the two has the label.

    With "concatenation": ([B, D + classes], None). With "projection": (z [B, D], label). Without a label: (z, None).
    """
    if label is None or conditioning == "projection":
        return z, label
    return jnp.concatenate([z, label.astype(z.dtype)], axis=-1), None


class Dense(nn.Module):
    """Network of a `Perceptron`: (latents [B, D], one-hot label, train) -> images [B, *shape] in [-1, 1]."""

    arch: Perceptron
    shape: tuple[int, ...]
    conditioning: Conditioning | None
    dtypes: Dtypes

    @nn.compact
    def __call__(self, z: Array, label: Array | None, train: bool) -> Array:
        x, label = join_label(z, label, self.conditioning)
        for width in self.arch.widths:
            # A normalization has its own shift, which makes a bias before it useless.
            x = layers.Dense(width, use_bias=self.arch.norm == "none", **self.dtypes)(x)
            if self.arch.norm != "none":
                x = Norm(self.arch.norm, self.dtypes)(x, label, train)
            x = ACTIVATIONS[self.arch.activation](x)
        return jnp.tanh(layers.Dense(math.prod(self.shape), **self.dtypes)(x)).reshape(-1, *self.shape)


class Transposed(nn.Module):
    """Network of a `DCGAN`: (latents [B, D], one-hot label, train) -> images [B, *shape] in [-1, 1]."""

    arch: DCGAN
    shape: tuple[int, ...]
    base: tuple[int, int]
    """Height and width of the projection."""
    conditioning: Conditioning | None
    dtypes: Dtypes

    @nn.compact
    def __call__(self, z: Array, label: Array | None, train: bool) -> Array:
        # A normalization has its own shift, which makes a bias before it useless.
        arch, use_bias = self.arch, self.arch.norm == "none"
        # Radford et al. 2016 draw all weights from N(0, 0.02^2).
        init = nn.initializers.normal(0.02)
        x, label = join_label(z, label, self.conditioning)
        size = math.prod(self.base) * arch.widths[0]
        x = layers.Dense(size, use_bias=use_bias, kernel_init=init, **self.dtypes)(x)
        x = self.activate(x.reshape(-1, *self.base, arch.widths[0]), label, train)
        # The last stride belongs to the convolution after the loop, which makes the channels of the image.
        for width, stride in zip(arch.widths[1:], arch.strides, strict=False):
            conv = Conv(width, arch.kernel, stride, transposed=True, use_bias=use_bias, kernel_init=init, **self.dtypes)
            x = self.activate(conv(x), label, train)
        last = Conv(self.shape[-1], arch.kernel, arch.strides[-1], transposed=True, kernel_init=init, **self.dtypes)
        return jnp.tanh(last(x))

    def activate(self, x: Array, label: Array | None, train: bool) -> Array:
        """Applies the normalization, if there is one, then the activation. x: [B, H, W, C]."""
        if self.arch.norm != "none":
            x = Norm(self.arch.norm, self.dtypes)(x, label, train)
        return ACTIVATIONS[self.arch.activation](x)


class Blocks(nn.Module):
    """Network of a `Residual`: (latents [B, D], one-hot label, train) -> images [B, *shape] in [-1, 1]."""

    arch: Residual
    shape: tuple[int, ...]
    base: tuple[int, int]
    """Height and width of the projection."""
    conditioning: Conditioning | None
    dtypes: Dtypes

    @nn.compact
    def __call__(self, z: Array, label: Array | None, train: bool) -> Array:
        widths, init = self.arch.widths, nn.initializers.xavier_uniform()
        x, label = join_label(z, label, self.conditioning)
        x = layers.Dense(math.prod(self.base) * widths[0], kernel_init=init, **self.dtypes)(x)
        x = x.reshape(-1, *self.base, widths[0])
        for i, width in enumerate(widths[1:], 1):
            x = self.block(x, width, label, train)
            if i in self.arch.attention:
                # Unlike in Zhang et al. 2019, no layer of this generator has spectral normalization.
                x = SelfAttention(False, self.dtypes)(x, train)
        return jnp.tanh(self.conv(self.activate(x, label, train), self.shape[-1], 3))

    def block(self, x: Array, width: int, label: Array | None, train: bool) -> Array:
        """Applies a residual block that doubles height and width: x [B, H, W, C] -> [B, 2 H, 2 W, width]."""
        y = self.conv(upsample(self.activate(x, label, train)), width, 3)
        y = self.conv(self.activate(y, label, train), width, 3)
        # The shortcut convolves before it enlarges: the same numbers as in the other order, at a quarter of the cost.
        return y + upsample(self.conv(x, width, 1))

    def activate(self, x: Array, label: Array | None, train: bool) -> Array:
        """Applies the normalization, if there is one, then a ReLU. x: [B, H, W, C]."""
        if self.arch.norm != "none":
            x = Norm(self.arch.norm, self.dtypes)(x, label, train)
        return nn.relu(x)

    def conv(self, x: Array, width: int, side: int) -> Array:
        """Convolves x [B, H, W, C] with a kernel of side x side pixels. Returns [B, H, W, width]."""
        return Conv(width, side, kernel_init=nn.initializers.xavier_uniform(), **self.dtypes)(x)


def upsample(x: Array) -> Array:
    """Returns x [B, H, W, C] with every pixel repeated in a square of four, [B, 2 H, 2 W, C]."""
    b, h, w, c = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)
