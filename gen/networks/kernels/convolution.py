"""Convolutions that are fast on a CPU too, in every derivative. Images [B, H, W, C], kernels [kh, kw, C, O], padding SAME.

All come from one trilinear form, t(x, k, g) = sum(conv(x, k) * g): its derivative by g is the convolution, by x the
transposed convolution, by k a correlation of images. Each is the derivative of the others, and is told so: what is derived
from a transposed convolution instead, its gradient by the kernel, XLA runs up to 50 times slower on a CPU.

There, where it saves enough multiplications, t is computed from discrete Fourier transforms of all three, which are small
enough to be matrices: 1/5 of the multiplications for a 5x5 kernel on 7x7 pixels. And what XLA is slow at, transposed
convolutions with a stride and convolutions of few channels, is one product over all taps, of pixels that were taken apart
before or are added up after. The results differ by rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial, reduce

import jax
import jax.numpy as jnp
import numpy as np

from gen.core import Array

Form = Callable[[Array, Array], Array]
Shape = tuple[int, ...]
FEW = 4  # channels of an image


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, stride: int) -> Array:
    """[B, H, W, C], [kh, kw, C, O] -> [B, ceil(H / stride), ceil(W / stride), O], as flax's nn.Conv without its bias."""

    def fourier(x: Array, kernel: Array) -> Array:
        u, v, w = factors(x.shape[1:3], kernel.shape[:2], x.dtype)
        return image(w, spectra(u, x) @ jnp.tensordot(v, flat(kernel), 1), x.shape[1:3])

    def by_taps(x: Array, kernel: Array) -> Array:
        return jnp.tensordot(taken(x, kernel.shape[:2], stride), kernel, 3)

    cpu = by_taps if x.shape[3] <= FEW else None
    return either(fourier, partial(plain, stride=stride), x, kernel, x.shape, kernel.shape, stride, cpu)


def conv_transpose(x: Array, kernel: Array, stride: int) -> Array:
    """[B, H, W, C], [kh, kw, C, O] -> [B, H stride, W stride, O], as flax's nn.ConvTranspose without its bias."""
    return by_image(x, kernel[::-1, ::-1].swapaxes(2, 3), stride, (x.shape[1] * stride, x.shape[2] * stride))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def by_image(g: Array, kernel: Array, stride: int, sides: tuple[int, int]) -> Array:
    """dt/dx, [B, *sides, C], for images x of these sides."""
    shape = (g.shape[0], *sides, kernel.shape[2])

    def fourier(g: Array, kernel: Array) -> Array:
        u, v, w = factors(sides, kernel.shape[:2], g.dtype)
        return image(u, spectra(w, g) @ jnp.tensordot(v, flat(kernel.swapaxes(2, 3)), 1), sides)

    def direct(g: Array, kernel: Array) -> Array:
        x = jax.ShapeDtypeStruct(shape, g.dtype)
        return jax.linear_transpose(lambda x: plain(x, kernel, stride), x)(g)[0]

    def by_taps(g: Array, kernel: Array) -> Array:
        return added(jnp.tensordot(g, kernel, ((3,), (3,))), stride, sides)

    cpu = by_taps if (stride > 1 or kernel.shape[2] <= FEW) and stride <= min(kernel.shape[:2]) else None
    return either(fourier, direct, g, kernel, shape, kernel.shape, stride, cpu)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def by_kernel(x: Array, g: Array, stride: int, sides: tuple[int, int]) -> Array:
    """dt/dk, [*sides, C, O], for kernels k of these sides."""
    shape = (*sides, x.shape[3], g.shape[3])

    def fourier(x: Array, g: Array) -> Array:
        u, v, w = factors(x.shape[1:3], sides, x.dtype)
        return jnp.tensordot(v.T, spectra(u, x).mT @ spectra(w, g), 1).reshape(shape)

    def direct(x: Array, g: Array) -> Array:
        kernel = jax.ShapeDtypeStruct(shape, x.dtype)
        return jax.linear_transpose(lambda kernel: plain(x, kernel, stride), kernel)(g)[0]

    def parts(x: Array, g: Array) -> Array:
        """A few examples at a time, about 3136 pixels, which stay in the cache: up to three times as fast."""
        size = max(3136 // math.prod(g.shape[1:3]), math.ceil(len(x) / 16))
        cuts = tuple(range(size, len(x), size))
        return reduce(jnp.add, map(direct, jnp.split(x, cuts), jnp.split(g, cuts)))

    return either(fourier, direct, x, g, x.shape, shape, stride, parts)


conv.defvjp(
    lambda x, k, stride: (conv(x, k, stride), (x, k)),
    lambda stride, xk, g: (by_image(g, xk[1], stride, xk[0].shape[1:3]), by_kernel(xk[0], g, stride, xk[1].shape[:2])),
)
by_image.defvjp(
    lambda g, k, stride, sides: (by_image(g, k, stride, sides), (g, k)),
    lambda stride, sides, gk, x: (conv(x, gk[1], stride), by_kernel(x, gk[0], stride, gk[1].shape[:2])),
)
by_kernel.defvjp(
    lambda x, g, stride, sides: (by_kernel(x, g, stride, sides), (x, g)),
    lambda stride, sides, xg, k: (by_image(xg[1], k, stride, xg[0].shape[1:3]), conv(xg[0], k, stride)),
)


def plain(x: Array, kernel: Array, stride: int) -> Array:
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jnp.tensordot(x, kernel[0, 0], 1)
    axes = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=axes)


def either(
    fourier: Form, direct: Form, a: Array, b: Array, x: Shape, kernel: Shape, stride: int, cpu: Form | None = None
):
    """direct(a, b); on a CPU fourier(a, b) if it has less than half of the multiplications, for x and kernel of these
    shapes, or else cpu(a, b). Both round more often, so bfloat16 is left alone."""
    (batch, *sides, c), (*taps, _, o) = x, kernel
    pixels, rank = math.prod(sides), 1.5 * math.prod(periods(sides, taps))
    transforms = pixels * batch * (c + o) + math.prod(taps) * c * o
    if stride == 1 and 2 * rank * (transforms + batch * c * o) < pixels * math.prod(taps) * batch * c * o:
        cpu = fourier
    if cpu is None or a.dtype not in (jnp.float32, jnp.float64):
        return direct(a, b)
    return jax.lax.platform_dependent(a, b, cpu=cpu, default=direct)


def taken(x: Array, taps: Sequence[int], stride: int) -> Array:
    """[B, H, W, C] -> [B, h, w, kh, kw, C]: the pixels under each tap."""
    h, w = (-(-side // stride) for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *edges(x.shape[1:3], taps, stride), (0, 0)))
    under = lambda i, j: x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
    return jnp.stack([under(i, j) for i, j in np.ndindex(*taps)], 3).reshape(-1, h, w, *taps, x.shape[3])


def added(y: Array, stride: int, sides: Shape) -> Array:
    """[B, h, w, kh, kw, C] -> [B, *sides, C], the adjoint of `taken`: what each tap has for its pixels, added up."""
    b, h, w, *taps, c = y.shape
    (top, _), (left, _) = edges(sides, taps, stride)
    phases: dict[Shape, Array] = {}  # the pixels whose places have these remainders by the stride, [B, h, w, C]
    for i, j in np.ndindex(*taps):
        (down, p), (right, q) = divmod(i - top, stride), divmod(j - left, stride)
        moved = jax.lax.pad(
            y[:, :, :, i, j], jnp.zeros((), y.dtype), ((0, 0, 0), (down, -down, 0), (right, -right, 0), (0, 0, 0))
        )
        phases[p, q] = phases[p, q] + moved if (p, q) in phases else moved
    rows = [jnp.stack([phases[p, q] for q in range(stride)], 3) for p in range(stride)]
    return jnp.stack(rows, 2).reshape(b, h * stride, w * stride, c)[:, : sides[0], : sides[1]]


def edges(sides: Sequence[int], taps: Sequence[int], stride: int) -> Sequence[tuple[int, int]]:
    """Pixels of padding before and after."""
    return jax.lax.padtype_to_pads(sides, taps, (stride, stride), "SAME")


def periods(sides: Sequence[int], taps: Sequence[int]) -> list[int]:
    """The shortest that keep what lies outside of the image zero: `sides` pixels, then as many as a kernel reaches over."""
    return [side + tap // 2 for side, tap in zip(sides, taps, strict=True)]


@lru_cache
def factors(
    sides: tuple[int, int], taps: tuple[int, int], dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """u [R, H W], v [R, kh kw], w [R, H W] such that t(x, k, g) = sum_r (u x)_r (v k)_r (w g)_r, at stride 1.

    t is the mean of X K G over the frequencies, X the transform of x, K and G those of the mirrored k and g. Opposite
    frequencies are conjugate, so that one of two is enough, and Re(X K G) is a sum of three real products:
    Re G - Im G times Re K (Re X + Im X), -Im G times Re X (Im K - Re K), -Re G times Im X (Re K + Im K).
    """
    n = np.array(periods(sides, taps))
    grid = lambda shape: np.stack(np.indices(shape), -1).reshape(-1, 2)
    frequency = grid(n)
    opposite = -frequency % n
    ours, once = (frequency @ (n[1], 1) <= opposite @ (n[1], 1)), (frequency == opposite).all(1)
    wave = lambda position: np.exp(-2j * np.pi * (frequency[ours] / n) @ position.T)
    x, k, g = wave(grid(sides)), wave((np.array(taps) - 1) // 2 - grid(taps)), wave(-grid(sides))
    g *= np.where(once[ours], 1, 2)[:, None] / n.prod()
    u = np.concatenate([x.real + x.imag, x.real, x.imag])
    v = np.concatenate([k.real, k.imag - k.real, k.imag + k.real])
    w = np.concatenate([g.real - g.imag, -g.imag, -g.real])
    return u.astype(dtype), v.astype(dtype), w.astype(dtype)


def flat(a: Array) -> Array:
    """[H, W, ...] -> [H W, ...]."""
    return a.reshape(-1, *a.shape[2:])


def spectra(m: np.ndarray, x: Array) -> Array:
    """[R, H W], [B, H, W, C] -> [R, B, C]."""
    return jnp.tensordot(m, flat(x.transpose(1, 2, 0, 3)), 1)


def image(m: np.ndarray, x: Array, sides: tuple[int, ...]) -> Array:
    """[R, H W], [R, B, C] -> [B, H, W, C], the adjoint of `spectra`."""
    return jnp.tensordot(m.T, x, 1).reshape(*sides, *x.shape[1:]).transpose(2, 0, 1, 3)
