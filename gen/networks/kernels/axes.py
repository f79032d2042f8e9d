"""Convolutions over one axis (sound) or three (video). Inputs are [B, *axes, C], kernels [*sides, C, O], and padding is SAME.

XLA is slow at a stride over one axis on a CPU, above all at the gradient of a transposed convolution: 20 times slower than the products of
matrices here. These products cut a sequence into blocks of `stride` positions. Frames (the parts under the kernel) start every
`stride` positions, so each frame is a whole number of blocks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from gen.core import Array
from gen.networks.kernels.dense import products


def conv_axes(x: Array, kernel: Array, stride: int) -> Array:
    """Convolves x [B, *axes, C] with a kernel [*sides, C, O] over 1 to 3 axes. Returns [B, *ceil(axes / stride), O]."""
    axes = x.ndim - 2
    if axes == 1 and stride > 1:
        return conv_blocks(x, kernel, stride)
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * axes, "SAME", dimension_numbers=_dimensions(axes))


def conv_axes_transpose(x: Array, kernel: Array, stride: int) -> Array:
    """Applies a transposed convolution over 1 to 3 axes, like flax's nn.ConvTranspose without a bias.

    x [B, *axes, C], kernel [*sides, C, O] -> [B, *(axes * stride), O].
    """
    axes = x.ndim - 2
    if axes == 1 and stride > 1:
        return conv_blocks_transpose(x, kernel, stride)
    return jax.lax.conv_transpose(x, kernel, (stride,) * axes, "SAME", dimension_numbers=_dimensions(axes))


def _dimensions(axes: int) -> tuple[str, str, str]:
    names = "XYZ"[:axes]
    return f"N{names}C", f"{names}IO", f"N{names}C"


def conv_blocks(x: Array, kernel: Array, stride: int) -> Array:
    """Convolves x [B, T, C] with a kernel [taps, C, O], as a matrix product. Returns [B, ceil(T / stride), O]."""
    batch, length, inputs = x.shape
    ((before, _),) = jax.lax.padtype_to_pads((length,), kernel.shape[:1], (stride,), "SAME")
    kernel = whole_blocks(kernel, stride)
    count, parts = -(-length // stride), len(kernel) // stride
    # All blocks together cover the padded sequence, so nothing of it is cut off.
    after = (count - 1 + parts) * stride - before - length
    blocks = jnp.pad(x, ((0, 0), (before, after), (0, 0))).reshape(batch, -1, stride * inputs)
    # Frames are joined from blocks. With a gather, the gradient would be a scatter, which is slow.
    frames = jnp.concatenate([blocks[:, i : i + count] for i in range(parts)], 2)
    (y,) = products(frames, (kernel.reshape(-1, kernel.shape[2]),))
    return y


def conv_blocks_transpose(x: Array, kernel: Array, stride: int) -> Array:
    """Applies a transposed convolution as a matrix product: x [B, T, C], kernel [taps, C, O] -> [B, T * stride, O]."""
    (batch, length, inputs), (taps, _, outputs) = x.shape, kernel.shape
    # Each position of x adds a frame of outputs. JAX's kernels are mirrored.
    weights = whole_blocks(kernel[::-1], stride).swapaxes(0, 1).reshape(inputs, -1)
    (frames,) = products(x, (weights,))
    y = overlap_add(frames, stride * outputs).reshape(batch, -1, outputs)
    # The first frame begins before the first output if frames overlap.
    lead = max(0, taps - stride) // 2
    return y[:, lead : lead + length * stride]


def whole_blocks(kernel: Array, stride: int) -> Array:
    """Appends zeros to a kernel [taps, C, O] until the number of taps is a multiple of the stride."""
    return jnp.pad(kernel, ((0, -len(kernel) % stride), (0, 0), (0, 0)))


def overlap_add(frames: Array, hop: int) -> Array:
    """Adds up frames [..., F, window], where frame f begins at sample f * hop: [..., (F - 1) * hop + window].

    The window must be a multiple of hop.
    """
    *rest, count, window = frames.shape
    parts = window // hop
    none = [(0, 0)] * len(rest)
    # A scatter would be slow. Each part of all frames is one padded array instead.
    blocks = [jnp.pad(frames[..., i * hop : (i + 1) * hop], [*none, (i, parts - 1 - i), (0, 0)]) for i in range(parts)]
    return sum(blocks[1:], blocks[0]).reshape(*rest, (count + parts - 1) * hop)
