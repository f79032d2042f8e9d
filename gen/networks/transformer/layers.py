"""Layers of a transformer's block: dense layers, norms and the feed-forward layer.

Their parameters have the same names and shapes as in Flax's own layers. These layers run faster on a CPU (see gen.networks.kernels).
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.networks.dtypes import Dtypes
from gen.networks.kernels.dense import products
from gen.networks.kernels.normalization import normalize_examples
from gen.networks.kernels.sums import to_rows
from gen.networks.transformer.architecture import Architecture

# Standard deviation of initial weights, as in GPT-2.
INIT_STD = 0.02


def normal(std: float) -> nn.initializers.Initializer:
    """Returns the initializer that draws from N(0, std^2)."""
    return nn.initializers.normal(std)


def residual_std(arch: Architecture) -> float:
    """Returns the initial std of matrices whose output is added to the residual stream (Radford et al. 2019, section 2.3).

    A block without cross-attention adds two such outputs, so the variance of their sum does not depend on the number of
    blocks.
    """
    return INIT_STD / math.sqrt(2 * arch.layers)


class Linear(nn.Module):
    """The parameters of a dense layer, under the names of flax's nn.Dense. `linear` applies them."""

    features: int
    bias: bool
    dtypes: Dtypes
    std: float = INIT_STD
    """Standard deviation of the initial kernel."""

    @nn.compact
    def __call__(self, width: int) -> tuple[Array, Array | None]:
        """Returns (kernel [width, features], bias [features]; None without a bias). width: number of input channels."""
        dtype, param_dtype = self.dtypes["dtype"], self.dtypes["param_dtype"]
        kernel = self.param("kernel", normal(self.std), (width, self.features), param_dtype).astype(dtype)
        if not self.bias:
            return kernel, None
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,), param_dtype).astype(dtype)


def linear(x: Array, *layers: Linear) -> tuple[Array, ...]:
    """Returns the output [..., F] of each dense layer for the same input [..., D]: x kernel + bias."""
    # One call for all layers, because on a CPU the products of layers with the same input are joined.
    kernels, biases = zip(*(layer(x.shape[-1]) for layer in layers), strict=True)
    return tuple(
        y if bias is None else y + to_rows(bias, y.shape) for y, bias in zip(products(x, kernels), biases, strict=True)
    )


class FeedForward(nn.Module):
    """Computes down(gelu(up(x))), or down(silu(gate(x)) * up(x)) with SwiGLU. down, up and gate are dense layers."""

    arch: Architecture
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [B, T, D] for x [B, T, D]."""
        arch = self.arch
        swiglu = arch.activation == "swiglu"
        # SwiGLU has a third matrix. With 8/3 width, rounded up, both kinds have about the same number of parameters.
        hidden = arch.hidden or (-(-8 * arch.width // 3) if swiglu else 4 * arch.width)
        (h,) = linear(x, Linear(hidden, arch.bias, self.dtypes, name="up"))
        if swiglu:
            (gate,) = linear(x, Linear(hidden, arch.bias, self.dtypes, name="gate"))
            h = nn.silu(gate) * h
        else:
            h = nn.gelu(h)
        (y,) = linear(h, Linear(arch.width, arch.bias, self.dtypes, residual_std(arch), name="down"))
        return y


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, computed in at least float32. Its parameters are named as in flax."""

    centered: bool
    """Whether the mean is subtracted: LayerNorm. Otherwise RMSNorm."""
    bias: bool
    dtypes: Dtypes

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Returns [..., D] for x [..., D]."""
        dtype, param_dtype = self.dtypes["dtype"], self.dtypes["param_dtype"]
        # A sum of squares over D channels needs more digits than bfloat16 has.
        x = x.astype(jnp.promote_types(dtype, jnp.float32))
        scale = self.param("scale", nn.initializers.ones, x.shape[-1:], param_dtype).astype(x.dtype)
        y = normalize_examples(x, scale, self.centered)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, x.shape[-1:], param_dtype).astype(x.dtype)
            y += to_rows(bias, y.shape)
        return y.astype(dtype)


def norm(arch: Architecture, dtypes: Dtypes, name: str) -> Norm:
    """Returns the LayerNorm or RMSNorm that `arch.norm` chooses, as a submodule of this name."""
    layer = arch.norm == "layer"
    return Norm(layer, layer and arch.bias, dtypes, name=name)


def cap_logits(logits: Array, arch: Architecture) -> Array:
    """Returns cap tanh(logits / cap), or the logits themselves if the architecture has no cap."""
    if arch.logit_cap is None:
        return logits
    return arch.logit_cap * jnp.tanh(logits / arch.logit_cap)
