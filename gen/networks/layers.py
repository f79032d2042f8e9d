"""Layers that several networks use: dense layers, convolutions, normalizations, dropout and self-attention over images.

Batch normalization and minibatch discrimination use the global batch: they communicate over the mapped axis "data".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array
from gen.errors import UserError
from gen.networks.dtypes import Dtypes
from gen.networks.kernels import convolution
from gen.networks.kernels.axes import conv_axes, conv_axes_transpose
from gen.networks.kernels.dense import products
from gen.networks.kernels.normalization import EPSILON, normalize_channels
from gen.networks.kernels.sums import to_rows
from gen.networks.virtual_batch_norm import virtual_batch_norm

Activation = Literal["relu", "leaky_relu", "silu", "gelu", "tanh"]
Normalization = Literal["batch", "layer", "virtual", "none"]
Initializer = nn.initializers.Initializer

MOMENTUM = 0.9
"""Decay of the running mean and variance of batch normalization: each step keeps this fraction of the old value."""


def leaky_relu(x: Array) -> Array:
    """Returns x where x > 0, otherwise 0.2 x. Radford et al. 2016 use this slope."""
    return nn.leaky_relu(x, 0.2)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": leaky_relu,
    "silu": nn.silu,
    "gelu": nn.gelu,
    "tanh": jnp.tanh,
}


class Dense(nn.Module):
    """A dense layer, x kernel + bias, like flax's nn.Dense."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [..., features] for x [..., D]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        # The same as x @ kernel, with gradients that are faster on a CPU.
        (y,) = products(x.astype(self.dtype), (kernel.astype(self.dtype),))
        return add_bias(self, y) if self.use_bias else y


class Conv(nn.Module):
    """A convolution or transposed convolution, padding SAME, over one axis (sound), two (images) or three (video)."""

    features: int
    side: int
    """Length of the kernel on each axis."""
    stride: int = 1
    transposed: bool = False
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    dtype: DTypeLike = jnp.float32
    param_dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [B, ceil(H / stride), ceil(W / stride), features] for x [B, H, W, C], and likewise for other numbers of axes.

        If transposed: [B, H * stride, W * stride, features].
        """
        axes = x.ndim - 2
        shape = (*(self.side,) * axes, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype).astype(self.dtype)
        conv, transpose = convolution.conv, convolution.conv_transpose
        if axes != 2:
            conv, transpose = conv_axes, conv_axes_transpose
        convolve = transpose if self.transposed else conv
        y: Array = convolve(x.astype(self.dtype), kernel, self.stride)  # pyright: ignore[reportAssignmentType]
        return add_bias(self, y) if self.use_bias else y


def add_bias(layer: Dense | Conv, y: Array) -> Array:
    """Returns y [..., features] plus the layer's parameter "bias"."""
    bias = layer.param("bias", nn.initializers.zeros, (layer.features,), layer.param_dtype)
    return y + to_rows(bias.astype(layer.dtype), y.shape)


class Norm(nn.Module):
    """A normalization, then a trained scale and shift of each channel, which may differ between classes (de Vries et al. 2017).

    Kinds differ in the mean and variance that they use. batch: of the global batch in training, and running averages otherwise
    (Ioffe and Szegedy 2015). layer: of each example (Ba et al. 2016). virtual: of a fixed reference batch together with each
    example (gen/networks/virtual_batch_norm.py). none: only the scale and the shift.
    """

    kind: Normalization
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, label: Array | None, train: bool) -> Array:
        """Returns x [B, ..., C] normalized, scaled and shifted.

        label: one-hot [B, classes]. None: all classes share one scale and shift. train: for "batch", see `BatchNorm`.
        """
        ones, zeros, channels = nn.initializers.ones, nn.initializers.zeros, x.shape[-1]
        if label is None:
            scale = self.param("scale", ones, (channels,), self.dtypes["param_dtype"])
            y = self.normalize(x, scale, train)
            bias = self.param("bias", zeros, (channels,), self.dtypes["param_dtype"])
            return y + to_rows(bias.astype(x.dtype), x.shape)
        # Each class has its own scale and shift, so the normalization gets a scale of 1.
        x = self.normalize(x, jnp.ones(channels), train)
        return x * self.per_class("scale", ones, x, label) + self.per_class("shift", zeros, x, label)

    def per_class(self, name: str, init: Initializer, x: Array, label: Array) -> Array:
        """Returns the trained vector of each example's class, [B, 1, ..., C], in the dtype of x.

        name, init: of the parameter with the vectors, [classes, C]. x: [B, ..., C]. label: one-hot [B, classes].
        """
        channels = x.shape[-1]
        rows = Dense(channels, use_bias=False, kernel_init=init, name=name, **self.dtypes)(label)
        return rows.reshape(x.shape[0], *(1,) * (x.ndim - 2), channels).astype(x.dtype)

    def normalize(self, x: Array, scale: Array, train: bool) -> Array:
        """Returns x [B, ..., C] normalized as `kind` says ("none": unchanged), times the scale [C], but not shifted.

        train: for "batch", see `BatchNorm`. The other kinds ignore it.
        """
        match self.kind:
            case "batch":
                return BatchNorm(self.dtypes, name="BatchNorm_0")(x, scale, train)
            case "layer":
                axes = tuple(range(1, x.ndim))
                plain = {"reduction_axes": axes, "use_scale": False, "use_bias": False}
                x = nn.LayerNorm(name="LayerNorm_0", **plain, **self.dtypes)(x)
            case "virtual":
                x = virtual_batch_norm(x)
        return x * to_rows(scale.astype(x.dtype), x.shape)


class BatchNorm(nn.Module):
    """Computes (x - mean) / sqrt(variance + EPSILON) * scale for each channel. Ioffe and Szegedy 2015.

    In training it uses the moments of the global batch, and their running averages are updated. Otherwise the running
    averages are used.
    """

    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, scale: Array, train: bool) -> Array:
        """Returns [B, ..., C] for x [B, ..., C] and scale [C]. Moments are at least float32."""
        whole = jnp.promote_types(self.dtypes["dtype"], jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, scale.shape, whole)
        running_variance = self.variable("batch_stats", "var", jnp.ones, scale.shape, whole)
        x, scale = x.astype(whole), scale.astype(whole)
        # Parameters are initialized outside of the mapped axis "data", where there is no global batch.
        if train and not self.is_initializing():
            # normalize_channels averages the moments over "data", so the statistics are the same on every device.
            y, mean, variance = normalize_channels(x, scale)
            running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
            running_variance.value = MOMENTUM * running_variance.value + (1 - MOMENTUM) * variance
        else:
            over = scale * jax.lax.rsqrt(running_variance.value + EPSILON)
            y = (x - to_rows(running_mean.value, x.shape)) * to_rows(over, x.shape)
        return y.astype(self.dtypes["dtype"])


def spectral_norm(layer: Dense | Conv, enabled: bool, train: bool) -> Callable[[Array], Array]:
    """Returns the layer with its kernel divided by an estimate of its largest singular value, or the layer itself if not enabled.

    Each forward pass improves the stored singular vector by one power iteration. The result is stored only with
    `train`. A step of the discriminator has two forward passes, on real and on generated images, so it makes two
    iterations. In Miyato et al. 2018, algorithm 1, it makes one.
    """
    if not enabled:
        return layer  # pyright: ignore[reportReturnType]
    # Singular vectors are at least float32, because a power iteration in bfloat16 does not converge.
    whole = jnp.promote_types(layer.param_dtype, jnp.float32)
    normalized = nn.SpectralNorm(layer, dtype=layer.param_dtype, param_dtype=whole)

    def apply(x: Array) -> Array:
        return normalized(x, update_stats=train)

    return apply


def dropout(x: Array, keys: Array | None, layer: int, rate: float) -> Array:
    """Returns x [B, ...] with each element set to 0 with probability `rate`, and otherwise divided by 1 - rate.

    keys: [B], one per example, so that an example's noise does not depend on its device. None: no dropout. layer:
    number of the layer in its network, which makes its noise differ from the noise of other layers.
    """
    if keys is None or not rate:
        return x

    def draw(key: Array) -> Array:
        return jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:])

    return jnp.where(jax.vmap(draw)(keys), x / (1 - rate), 0)


def check_attention(after: tuple[int, ...], blocks: int) -> None:
    """Raises: UserError if a number in `after`, the blocks that self-attention follows, is not in [1, blocks]."""
    for block in after:
        if not 1 <= block <= blocks:
            raise UserError(f"attention follows block {block}, and there are blocks 1 to {blocks}")


class SelfAttention(nn.Module):
    """Computes x + gamma * attention(x) over positions. gamma is trained from 0 on. Zhang et al. 2019, section 3."""

    spectral: bool
    """Whether its convolutions have spectral normalization."""
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """Returns [B, H, W, C] for x [B, H, W, C]."""
        b, h, w, c = x.shape
        # Queries and keys have c / 8 channels and values c / 2, as in the authors' code.
        query = self.pointwise(x, max(1, c // 8), train).reshape(b, h * w, -1)
        key = pool(self.pointwise(x, max(1, c // 8), train))
        value = pool(self.pointwise(x, max(1, c // 2), train))
        attention = nn.softmax(jnp.einsum("bqc,bkc->bqk", query, key), axis=-1)
        read = jnp.einsum("bqk,bkc->bqc", attention, value).reshape(b, h, w, -1)
        # With gamma = 0 the network first learns from local features, and adds distant ones later.
        gamma = self.param("gamma", nn.initializers.zeros, (), self.dtypes["param_dtype"])
        return x + gamma.astype(x.dtype) * self.pointwise(read, c, train)

    def pointwise(self, x: Array, channels: int, train: bool) -> Array:
        """Returns a 1x1 convolution of x, [B, H, W, channels]. train: see `spectral_norm`."""
        return spectral_norm(Conv(channels, 1, use_bias=False, **self.dtypes), self.spectral, train)(x)


def pool(x: Array) -> Array:
    """Halves H and W by 2x2 max pooling, unless H or W is below 4, and joins both: [B, H, W, C] -> [B, N, C].

    A quarter of the positions is enough for keys and values (Zhang et al. 2019).
    """
    if min(x.shape[1:3]) >= 4:
        x = nn.max_pool(x, (2, 2), (2, 2))
    return x.reshape(x.shape[0], -1, x.shape[-1])


class MinibatchDiscrimination(nn.Module):
    """Appends features that say how close an example is to the other examples of the global batch.

    A discriminator can then detect a lack of variety. Feature b of example i is sum_j exp(-|M_i,b - M_j,b|_1) over the
    other examples j, where M_i,b is linear in the features of example i. Salimans et al. 2016, section 3.2.
    """

    kernels: int
    """Number of new features."""
    dims: int
    """Size of the vectors M_i,b between which a kernel measures distances."""
    dtypes: Dtypes

    @nn.compact
    def __call__(self, features: Array, weight: Array | None = None) -> Array:
        """Returns [B, F + kernels] for features [B, F].

        weight: [B], 1 for an example and 0 for padding. The sums leave padding out, and are scaled up as if the batch
        had no padding. None: no padding.
        """
        m = Dense(self.kernels * self.dims, use_bias=False, **self.dtypes)(features)
        m = m.reshape(-1, self.kernels, self.dims)
        # Each device compares its own examples with all examples. Parameters are initialized outside of the axis "data".
        others = m if self.is_initializing() else jax.lax.all_gather(m, "data", tiled=True)
        distance = jnp.abs(m[:, None] - others[None, :]).sum(-1)  # [B, global B, kernels]
        near = jnp.exp(-distance)
        # Subtracting 1 leaves out the example itself, whose distance is 0.
        if weight is None:
            closeness = near.sum(1) - 1
        else:
            counted = jax.lax.all_gather(weight, "data", tiled=True).astype(near.dtype)
            full = (len(counted) - 1) / jnp.maximum(counted.sum() - 1, 1)
            closeness = full * ((near * counted[None, :, None]).sum(1) - 1)
        return jnp.concatenate([features, closeness.astype(features.dtype)], axis=-1)
