"""Layers that generators and discriminators are made of. What couples a batch couples the whole batch, over the axis "data"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError
from gen.networks.kernels import convolution
from gen.networks.kernels.dense import products
from gen.networks.kernels.normalization import EPSILON, by_channel
from gen.networks.kernels.sums import to_rows
from gen.networks.virtual_batch_norm import virtual

Activation = Literal["relu", "leaky_relu", "silu", "gelu", "tanh"]
Normalization = Literal["batch", "layer", "virtual", "none"]

MOMENTUM = 0.9  # of the running averages of batch moments

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": nn.relu,
    "leaky_relu": lambda x: nn.leaky_relu(x, 0.2),
    "silu": nn.silu,
    "gelu": nn.gelu,
    "tanh": jnp.tanh,
}


class Dense(nn.Module):
    """A dense layer."""

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[..., D] -> [..., features]."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), self.param_dtype)
        (y,) = products(x.astype(self.dtype), (kernel.astype(self.dtype),))
        return biased(self, y) if self.use_bias else y


class Conv(nn.Module):
    """A convolution, or the transposed one, with padding SAME."""

    features: int
    side: int
    stride: int = 1
    transposed: bool = False
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), features]; transposed: [B, H stride, W stride, features]."""
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype).astype(self.dtype)
        y: Any = (convolution.conv_transpose if self.transposed else convolution.conv)(
            x.astype(self.dtype), kernel, self.stride
        )
        return biased(self, y) if self.use_bias else y


def biased(layer: Dense | Conv, y: Array) -> Array:
    bias = layer.param("bias", nn.initializers.zeros, (layer.features,), layer.param_dtype)
    return y + to_rows(bias.astype(layer.dtype), y.shape)


class Norm(nn.Module):
    """Normalization, then a scale and a shift of each channel: one for all, or one for each class (de Vries et al. 2017).

    batch: by the moments of the whole batch over all devices, or their running averages (Ioffe and Szegedy 2015);
    layer: by those of the example itself (Ba et al. 2016); virtual: by those of a reference batch (gen/networks/virtual_batch_norm.py).
    """

    kind: Normalization
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array, label: Array | None, train: bool) -> Array:
        """x: [B, ..., C]; label: [B, classes] one-hot or None."""
        ones, zeros, channels = nn.initializers.ones, nn.initializers.zeros, x.shape[-1]
        if label is None:
            of = lambda name, begin: self.param(name, begin, (channels,), self.dtypes["param_dtype"])
            return self.normalized(x, of("scale", ones), train) + to_rows(of("bias", zeros).astype(x.dtype), x.shape)
        per_example = (x.shape[0], *(1,) * (x.ndim - 2), channels)
        by_class = lambda name, init: Dense(channels, use_bias=False, kernel_init=init, name=name, **self.dtypes)(
            label
        ).reshape(per_example)
        x = self.normalized(x, jnp.ones(channels), train)
        return x * by_class("scale", ones).astype(x.dtype) + by_class("shift", zeros).astype(x.dtype)

    def normalized(self, x: Array, scale: Array, train: bool) -> Array:
        """Normalized, and times the scale [C]."""
        match self.kind:
            case "batch":
                return BatchNorm(self.dtypes, name="BatchNorm_0")(x, scale, train)
            case "layer":
                axes = tuple(range(1, x.ndim))
                plain = {"reduction_axes": axes, "use_scale": False, "use_bias": False}
                x = nn.LayerNorm(name="LayerNorm_0", **plain, **self.dtypes)(x)
            case "virtual":
                x = virtual(x)
        return x * to_rows(scale.astype(x.dtype), x.shape)


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(variance) of each channel, times its scale. Training, of the whole batch, and running averages follow; else
    by those."""

    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array, scale: Array, train: bool) -> Array:
        """[B, ..., C] -> [B, ..., C]; moments are at least float32."""
        whole = jnp.promote_types(self.dtypes["dtype"], jnp.float32)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, scale.shape, whole)
        running_variance = self.variable("batch_stats", "var", jnp.ones, scale.shape, whole)
        x, scale = x.astype(whole), scale.astype(whole)
        if train and not self.is_initializing():
            y, mean, variance = by_channel(x, scale)
            running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
            running_variance.value = MOMENTUM * running_variance.value + (1 - MOMENTUM) * variance
        else:
            over = scale * jax.lax.rsqrt(running_variance.value + EPSILON)
            y = (x - to_rows(running_mean.value, x.shape)) * to_rows(over, x.shape)
        return y.astype(self.dtypes["dtype"])


def spectral(layer: Dense | Conv, on: bool, train: bool) -> Callable[[Array], Array]:
    """The layer with its kernel divided by an estimate of its largest singular value, one power iteration a training step
    (Miyato et al. 2018, algorithm 1), if `on`."""
    if not on:
        return layer  # pyright: ignore[reportReturnType]
    real = jnp.promote_types(layer.param_dtype, jnp.float32)
    normalized = nn.SpectralNorm(layer, dtype=layer.param_dtype, param_dtype=real)
    return lambda x: normalized(x, update_stats=train)


def dropout(x: Array, keys: Array | None, layer: int, rate: float) -> Array:
    """Inverted dropout whose noise belongs to the example. keys: [B], or None for no dropout; layer: its number."""
    if keys is None or not rate:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def check_attention(after: tuple[int, ...], blocks: int) -> None:
    """Raises: UserError for a block that there is not."""
    for block in after:
        if not 1 <= block <= blocks:
            raise UserError(f"attention follows block {block}, and there are blocks 1 to {blocks}")


class SelfAttention(nn.Module):
    """x + gamma attention(x) over positions, gamma zero at the start. Zhang et al. 2019, section 3."""

    spectral: bool
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        b, h, w, c = x.shape

        def pointwise(x: Array, channels: int) -> Array:
            return spectral(Conv(channels, 1, use_bias=False, **self.dtypes), self.spectral, train)(x)

        flat = lambda x: x.reshape(b, -1, x.shape[-1])
        pool = lambda x: nn.max_pool(x, (2, 2), (2, 2)) if min(h, w) >= 4 else x
        query, key = flat(pointwise(x, max(1, c // 8))), flat(pool(pointwise(x, max(1, c // 8))))
        value = flat(pool(pointwise(x, max(1, c // 2))))
        attention = nn.softmax(jnp.einsum("bqc,bkc->bqk", query, key), axis=-1)
        read = jnp.einsum("bqk,bkc->bqc", attention, value).reshape(b, h, w, -1)
        gamma = self.param("gamma", nn.initializers.zeros, (), self.dtypes["param_dtype"])
        return x + gamma.astype(x.dtype) * pointwise(read, c)


class MinibatchDiscrimination(nn.Module):
    """Features of how close an example is to the others of the whole batch, so that a discriminator sees a lack of variety.

    o(x_i)_b = sum_j exp(-|M_i,b - M_j,b|_1). Salimans et al. 2016, section 3.2.
    """

    kernels: int
    dims: int
    dtypes: dict[str, Any]

    @nn.compact
    def __call__(self, features: Array) -> Array:
        """[B, F] -> [B, F + kernels]."""
        m = Dense(self.kernels * self.dims, use_bias=False, **self.dtypes)(features)
        m = m.reshape(-1, self.kernels, self.dims)
        others = m if self.is_initializing() else jax.lax.all_gather(m, "data", tiled=True)
        distance = jnp.abs(m[:, None] - others[None, :]).sum(-1)  # [B, all, kernels]
        closeness = jnp.exp(-distance).sum(1) - 1  # itself left out
        return jnp.concatenate([features, closeness.astype(features.dtype)], axis=-1)
