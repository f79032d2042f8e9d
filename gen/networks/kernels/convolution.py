"""Convolutions that are fast on a CPU too, and so are their derivatives of every order.

Images are [B, H, W, C], kernels [kh, kw, C, O], and padding is SAME. Plain: `plain_conv` and its `jax.linear_transpose`.

All three functions come from one trilinear form, t(x, k, g) = sum(conv(x, k) * g):

- `conv` is its derivative by g,
- `image_gradient` its derivative by x, a transposed convolution,
- `kernel_gradient` its derivative by k, a correlation of images.

The derivatives of each of these functions are the other two. Their custom gradient rules use this, because JAX's own rules are slow
on a CPU: the kernel gradient that JAX derives for a transposed convolution is up to 50 times slower.

On a CPU two other forms are used where they are faster (`choose`). They differ from the plain one by rounding.

- Fourier: t is computed from discrete Fourier transforms of x, k and g. Images are small, so the transforms are products with matrices
  (gen.networks.kernels.fourier). For a 5x5 kernel on 7x7 pixels this takes 1/5 of the multiplications.
- Taps: one matrix product over all taps (positions) of the kernel. Patches of pixels are copied before it (`take_patches`), or
  added up after it (`add_patches`). XLA is slow at transposed convolutions with a stride, and at images with few channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array
from gen.networks.kernels.fourier import flatten_sides, fourier_factors, inverse_transform, periods, transform

Form = Callable[[Array, Array], Array]
Shape = tuple[int, ...]
# For images with at most this many channels, one product over taps is faster than XLA's convolution.
MAX_TAPS_CHANNELS = 4
# `kernel_gradient` takes about this many pixels at a time (4 images of 28x28), because they stay in the CPU's cache.
CHUNK_PIXELS = 3136
# `kernel_gradient` divides a batch into at most this many parts, because each part is written out in the compiled program.
MAX_CHUNKS = 16


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, stride: int) -> Array:
    """Convolves images with a kernel, like flax's nn.Conv without a bias.

    x [B, H, W, C], kernel [kh, kw, C, O] -> [B, ceil(H / stride), ceil(W / stride), O].
    """

    def by_fourier(x: Array, kernel: Array) -> Array:
        f = fourier_factors(x.shape[1:3], kernel.shape[:2], x.dtype)
        y = transform(f.image, x) @ jnp.tensordot(f.kernel, flatten_sides(kernel), 1)
        return inverse_transform(f.output, y, x.shape[1:3])

    def by_taps(x: Array, kernel: Array) -> Array:
        return jnp.tensordot(take_patches(x, kernel.shape[:2], stride), kernel, 3)

    cpu = by_taps if x.shape[3] <= MAX_TAPS_CHANNELS else None
    return choose(by_fourier, partial(plain_conv, stride=stride), x, kernel, x.shape, kernel.shape, stride, cpu)


def conv_transpose(x: Array, kernel: Array, stride: int) -> Array:
    """Applies a transposed convolution, like flax's nn.ConvTranspose without a bias.

    x [B, H, W, C], kernel [kh, kw, C, O] -> [B, H * stride, W * stride, O].
    """
    # A transposed convolution is the gradient of a convolution whose kernel is mirrored, with its channels exchanged.
    sides = (x.shape[1] * stride, x.shape[2] * stride)
    return image_gradient(x, kernel[::-1, ::-1].swapaxes(2, 3), stride, sides)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def image_gradient(g: Array, kernel: Array, stride: int, sides: tuple[int, int]) -> Array:
    """Returns the gradient of t = sum(conv(x, kernel) * g) with respect to the images x. sides: height and width of x.

    g [B, h, w, O], kernel [kh, kw, C, O] -> [B, *sides, C].
    """
    shape = (g.shape[0], *sides, kernel.shape[2])

    def by_fourier(g: Array, kernel: Array) -> Array:
        f = fourier_factors(sides, kernel.shape[:2], g.dtype)
        x = transform(f.output, g) @ jnp.tensordot(f.kernel, flatten_sides(kernel.swapaxes(2, 3)), 1)
        return inverse_transform(f.image, x, sides)

    def plain(g: Array, kernel: Array) -> Array:
        x = jax.ShapeDtypeStruct(shape, g.dtype)
        return jax.linear_transpose(lambda x: plain_conv(x, kernel, stride), x)(g)[0]

    def by_taps(g: Array, kernel: Array) -> Array:
        return add_patches(jnp.tensordot(g, kernel, ((3,), (3,))), stride, sides)

    # With a stride above the kernel's side, some pixels are under no tap, and `add_patches` would have no sum for them.
    slow = stride > 1 or kernel.shape[2] <= MAX_TAPS_CHANNELS
    cpu = by_taps if slow and stride <= min(kernel.shape[:2]) else None
    return choose(by_fourier, plain, g, kernel, shape, kernel.shape, stride, cpu)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def kernel_gradient(x: Array, g: Array, stride: int, sides: tuple[int, int]) -> Array:
    """Returns the gradient of t = sum(conv(x, kernel) * g) with respect to the kernel. sides: height and width of the kernel.

    x [B, H, W, C], g [B, h, w, O] -> [*sides, C, O].
    """
    shape = (*sides, x.shape[3], g.shape[3])

    def by_fourier(x: Array, g: Array) -> Array:
        f = fourier_factors(x.shape[1:3], sides, x.dtype)
        # The batch is summed at each frequency, so one inverse transform is enough for all images.
        return jnp.tensordot(f.kernel.T, transform(f.image, x).mT @ transform(f.output, g), 1).reshape(shape)

    def plain(x: Array, g: Array) -> Array:
        kernel = jax.ShapeDtypeStruct(shape, x.dtype)
        return jax.linear_transpose(lambda kernel: plain_conv(x, kernel, stride), kernel)(g)[0]

    def by_chunks(x: Array, g: Array) -> Array:
        """Adds up the gradients of chunks of the batch that fit into the CPU's cache: up to three times as fast."""
        size = max(CHUNK_PIXELS // math.prod(g.shape[1:3]), math.ceil(len(x) / MAX_CHUNKS))
        cuts = tuple(range(size, len(x), size))
        return reduce(jnp.add, map(plain, jnp.split(x, cuts), jnp.split(g, cuts)))

    return choose(by_fourier, plain, x, g, x.shape, shape, stride, by_chunks)


def _conv_forward(x: Array, k: Array, stride: int) -> tuple[Array, tuple[Array, Array]]:
    return conv(x, k, stride), (x, k)


def _conv_backward(stride: int, xk: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, k = xk
    return image_gradient(g, k, stride, x.shape[1:3]), kernel_gradient(x, g, stride, k.shape[:2])


def _image_forward(g: Array, k: Array, stride: int, sides: tuple[int, int]) -> tuple[Array, tuple[Array, Array]]:
    return image_gradient(g, k, stride, sides), (g, k)


def _image_backward(stride: int, _: tuple[int, int], gk: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    g, k = gk
    return conv(x, k, stride), kernel_gradient(x, g, stride, k.shape[:2])


def _kernel_forward(x: Array, g: Array, stride: int, sides: tuple[int, int]) -> tuple[Array, tuple[Array, Array]]:
    return kernel_gradient(x, g, stride, sides), (x, g)


def _kernel_backward(stride: int, _: tuple[int, int], xg: tuple[Array, Array], k: Array) -> tuple[Array, Array]:
    x, g = xg
    return image_gradient(g, k, stride, x.shape[1:3]), conv(x, k, stride)


conv.defvjp(_conv_forward, _conv_backward)
image_gradient.defvjp(_image_forward, _image_backward)
kernel_gradient.defvjp(_kernel_forward, _kernel_backward)


def plain_conv(x: Array, kernel: Array, stride: int) -> Array:
    """Returns the same as `conv`, [B, ceil(H / stride), ceil(W / stride), O], by XLA's own convolution."""
    # A 1x1 convolution is a product of matrices.
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jnp.tensordot(x, kernel[0, 0], 1)
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=axes)


def choose(
    by_fourier: Form, plain: Form, a: Array, b: Array, x: Shape, kernel: Shape, stride: int, cpu: Form | None
) -> Array:
    """Returns plain(a, b), or on a CPU the result of the form that is probably the fastest.

    On a CPU that is by_fourier(a, b) if the stride is 1 and it needs less than half of the multiplications of the plain
    form. Otherwise it is cpu(a, b), or plain(a, b) if cpu is None. Dtypes other than float32 and float64 always take
    plain(a, b), because the other forms round more often.

    a, b: two of images, kernel and gradient. x: shape of the images, [B, H, W, C]. kernel: its shape, [kh, kw, C, O].
    """
    (batch, *sides, c), (*taps, _, o) = x, kernel
    # 1.5 real products per frequency: a complex product is 3 real ones, and half of the frequencies are conjugates.
    pixels, rank = math.prod(sides), 1.5 * math.prod(periods(sides, taps))
    # Compares the multiplications of both transforms and of the product of the spectra with the plain convolution's.
    transforms = pixels * batch * (c + o) + math.prod(taps) * c * o
    if stride == 1 and 2 * rank * (transforms + batch * c * o) < pixels * math.prod(taps) * batch * c * o:
        cpu = by_fourier
    if cpu is None or a.dtype not in (jnp.float32, jnp.float64):
        return plain(a, b)
    return jax.lax.platform_dependent(a, b, cpu=cpu, default=plain)


def take_patches(x: Array, taps: Sequence[int], stride: int) -> Array:
    """Returns the pixel under each tap of a kernel, for each output position (im2col): [B, h, w, kh, kw, C].

    x: [B, H, W, C]. taps: sides of the kernel, (kh, kw). h = ceil(H / stride), w = ceil(W / stride).
    """
    h, w = (-(-side // stride) for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *padding(x.shape[1:3], taps, stride), (0, 0)))

    def under(i: int, j: int) -> Array:
        return x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]

    return jnp.stack([under(i, j) for i, j in np.ndindex(*taps)], 3).reshape(-1, h, w, *taps, x.shape[3])


def add_patches(y: Array, stride: int, sides: Shape) -> Array:
    """Adds each tap to its pixel (col2im), the adjoint of `take_patches`: [B, h, w, kh, kw, C] -> [B, *sides, C].

    All pixels that a tap (i, j) reaches have the same row and the same column modulo the stride. So the taps are added
    up in stride^2 dense images [B, h, w, C], one for each pair of remainders. At the end these images are interleaved.
    A scatter into strided pixels would be slow.
    """
    b, h, w, *taps, c = y.shape
    (top, _), (left, _) = padding(sides, taps, stride)
    sums: dict[Shape, Array] = {}
    for i, j in np.ndindex(*taps):
        # For output (r, s), tap (i, j) reaches the pixel (stride * (r + down) + p, stride * (s + right) + q).
        (down, p), (right, q) = divmod(i - top, stride), divmod(j - left, stride)
        shifts = ((0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0))
        shifted = jax.lax.pad(y[:, :, :, i, j], jnp.zeros((), y.dtype), shifts)
        sums[p, q] = sums[p, q] + shifted if (p, q) in sums else shifted
    rows = [jnp.stack([sums[p, q] for q in range(stride)], 3) for p in range(stride)]
    return jnp.stack(rows, 2).reshape(b, h * stride, w * stride, c)[:, : sides[0], : sides[1]]


def padding(sides: Sequence[int], taps: Sequence[int], stride: int) -> Sequence[tuple[int, int]]:
    """Returns the padding (before, after) of each axis for padding SAME. sides: of the image. taps: of the kernel."""
    return jax.lax.padtype_to_pads(sides, taps, (stride, stride), "SAME")
