"""What a GAN's discriminator is shown in place of an image, real or generated: random transformations with gradients.

Shown for both, they leave the generator's optimum where it is and keep a discriminator from learning a small set by heart.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from gen import axis
from gen.core import Array, Key
from gen.errors import UserError, check_positive


@dataclass(frozen=True)
class Augmentation:
    """Images -> images, at a strength p in [0, 1] that may follow the training. Subclass it to add one."""

    def start(self) -> Array:
        """p of the first step, float32[]."""
        return jnp.ones((), jnp.float32)

    def apply(self, images: Array, key: Key, row: Array, p: Array) -> Array:
        """Images [B, H, W, C] in [-1, 1] -> what D sees of them, same shape and dtype; colours may leave the range.

        row: int32[B]; noise belongs to (key, row) and is the same in every dtype. Differentiable in the images, twice.
        """
        real = jnp.promote_types(images.dtype, jnp.float32)
        p = jnp.asarray(p, jnp.float32)
        keys = axis.per_example(lambda key: key, key, row)
        return jax.vmap(lambda x, key: self.one(x, key, p))(images.astype(real), keys).astype(images.dtype)

    def one(self, x: Array, key: Key, p: Array) -> Array:
        """One image [H, W, C], float32 or float64."""
        raise NotImplementedError

    def adapt(self, p: Array, signs: Array, batch: int | Array) -> Array:
        """p after a step. signs: the mean of sign(D(x)) over the real images, as D saw them; batch: how many these were."""
        return p


@dataclass(frozen=True)
class DiffAugment(Augmentation):
    """Always the same few transformations. Zhao et al. 2020; p is not read."""

    policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
    """What to do, in this order: jitter brightness, saturation and contrast; shift by up to an eighth; blank out a quarter."""

    def __post_init__(self):
        _check(self.policy, tuple(DIFFERENTIABLE))

    def one(self, x: Array, key: Key, p: Array) -> Array:
        u = dict(zip(DIFFERENTIABLE, jax.random.uniform(key, (len(DIFFERENTIABLE), 3), jnp.float32), strict=True))
        for name in self.policy:
            x = DIFFERENTIABLE[name](x, u[name])
        return x


@dataclass(frozen=True)
class ADA(Augmentation):
    """Adaptive discriminator augmentation: each transformation is drawn with probability p, which rises while D's outputs on
    real images say that it overfits. Karras et al. 2020, section 3 and appendix B.

    Simpler than theirs: the warp is plain bilinear interpolation, without wavelet filters against aliasing around it; and grey
    images are not inverted, which is what a luma flip would do to them.
    """

    policy: tuple[Literal["blit", "geometry", "color"], ...] = ("blit", "geometry", "color")
    """blit: mirror, quarter turns, whole pixels of shift; geometry: scale, turn, stretch, fractions of shift; color:
    brightness and contrast, and of RGB luma flip, hue and saturation."""
    target: float = 0.6
    """E[sign(D(real))] that p steers to; above it D overfits."""
    kimg: float = 500.0
    """Thousands of real images in which p goes from 0 to 1, if always up."""

    def __post_init__(self):
        _check(self.policy, ("blit", "geometry", "color"))
        check_positive(kimg=self.kimg)
        if not -1 < self.target < 1:
            raise UserError(f"target is {self.target}; it is a mean of signs, in (-1, 1)")

    def start(self) -> Array:
        return jnp.zeros((), jnp.float32)

    def adapt(self, p: Array, signs: Array, batch: int | Array) -> Array:
        return jnp.clip(p + jnp.sign(signs - self.target) * (batch / (1000 * self.kimg)), 0, 1).astype(p.dtype)

    def one(self, x: Array, key: Key, p: Array) -> Array:
        # All noise at once, as each draw takes half a second to compile; above 0, of which the normal is infinite.
        u = jax.random.uniform(key, (13, 3), jnp.float32, minval=1e-7)
        blit, geometry, color = (p * (group in self.policy) for group in ("blit", "geometry", "color"))
        if "blit" in self.policy or "geometry" in self.policy:
            x = warp(x, *_random_motion(u[:8], jnp.array(x.shape[:2], jnp.float32), blit, geometry))
        return _random_color(x, u[8:], color) if "color" in self.policy else x


def _check(policy: Sequence[str], known: Sequence[str]) -> None:
    if not policy or not set(policy) <= set(known) or len(set(policy)) < len(policy):
        raise UserError(
            f"policy is {', '.join(policy) or 'empty'}; it names one or more of {', '.join(known)}, each once"
        )


def jitter(x: Array, brightness: Array, saturation: Array, contrast: Array) -> Array:
    """x [H, W, C] + brightness, its distance from each pixel's grey times saturation, then from the mean times contrast."""
    x = x + brightness
    grey = x.mean(-1, keepdims=True)
    mean = grey.mean()
    return mean + contrast * (grey + saturation * (x - grey) - mean)


def translate(x: Array, shift: Array) -> Array:
    """x [H, W, C] moved down and right by shift, int32[2], of at most (H // 8, W // 8); zeros, which are mid-grey, enter."""
    h, w = x.shape[0] // 8, x.shape[1] // 8
    corner = (h - shift[0], w - shift[1], jnp.zeros_like(shift[0]))
    return jax.lax.dynamic_slice(jnp.pad(x, ((h, h), (w, w), (0, 0))), corner, x.shape)


def cutout(x: Array, corner: Array) -> Array:
    """x [H, W, C] with zeros, which are mid-grey, on the H // 2 by W // 2 pixels from corner, int32[2]; it may lie outside."""
    inside = lambda n, start: (jnp.arange(n) >= start) & (jnp.arange(n) < start + n // 2)
    hole = inside(x.shape[0], corner[0])[:, None] & inside(x.shape[1], corner[1])[None, :]
    return jnp.where(hole[..., None], jnp.zeros_like(x), x)


def _random_jitter(x: Array, u: Array) -> Array:
    return jitter(x, u[0] - 0.5, 2 * u[1], u[2] + 0.5)


def _random_translate(x: Array, u: Array) -> Array:
    most = jnp.array([x.shape[0] // 8, x.shape[1] // 8], jnp.int32)
    return translate(x, _below(2 * most + 1, u[:2]) - most)


def _random_cutout(x: Array, u: Array) -> Array:
    side, size = (jnp.array([n // k for n in x.shape[:2]], jnp.int32) for k in (1, 2))
    # The middle of an even hole lies on any edge between pixels, the border's included; that of an odd one on any pixel.
    return cutout(x, _below(side + 1 - size % 2, u[:2]) - size // 2)


def _below(n: Array, u: Array) -> Array:
    """Integers in [0, n), as likely as each other, of uniform u in [0, 1)."""
    return jnp.floor(n * u).astype(jnp.int32)


DIFFERENTIABLE: dict[str, Callable[[Array, Array], Array]] = {
    "color": _random_jitter,
    "translation": _random_translate,
    "cutout": _random_cutout,
}


def warp(x: Array, linear: Array, shift: Array) -> Array:
    """The image [H, W, C] whose pixel q is x at linear [2, 2] @ q + shift [2], by bilinear interpolation.

    q and shift are (down, right) in pixels, q from the middle of the image; beyond its border x is mirrored about the
    border's pixels. Exact where the source is a pixel.
    """
    middle = [(n - 1) / 2 for n in x.shape[:2]]
    down, right = jnp.meshgrid(*(jnp.arange(n) - m for n, m in zip(x.shape[:2], middle, strict=True)), indexing="ij")
    source = [a * down + b * right + (t + m) for (a, b), t, m in zip(linear, shift, middle, strict=True)]
    sample = functools.partial(map_coordinates, coordinates=source, order=1, mode="mirror")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(x)


def recolor(x: Array, brightness: Array, contrast: Array, luma: Array, hue: Array, saturation: Array) -> Array:
    """contrast * (luma * (grey + brightness) + saturation * chroma turned by hue) of each pixel of x [..., C].

    A pixel is grey + chroma, its parts along (1, 1, 1) and across it; luma: 1, or -1 to flip; hue: radians, for C = 3.
    """
    grey = x.mean(-1, keepdims=True)
    chroma = x - grey
    across = (jnp.roll(chroma, 1, -1) - jnp.roll(chroma, -1, -1)) / math.sqrt(3)  # (1, 1, 1) / sqrt(3) x chroma
    # As changes of x, so that the neutral numbers leave every bit.
    change = luma * brightness + (luma - 1) * grey + (saturation * jnp.cos(hue) - 1) * chroma
    return contrast * (x + change + saturation * jnp.sin(hue) * across)


def _random_motion(u: Array, size: Array, blit: Array, geometry: Array) -> tuple[Array, Array]:
    """`linear` and `shift` of `warp`, for probabilities `blit` and `geometry`; u: [8, 3], uniform in (0, 1); size: (H, W).

    Each transformation is as likely as its inverse, so the way back from a pixel to its source is what is drawn.
    """
    mirror = _maybe(u[0], blit, _sign, 1.0)[0]
    quarter = _maybe(u[1], blit, lambda u: jnp.floor(4 * u), 0.0)[0].astype(jnp.int32)
    whole = _maybe(u[2], blit, _uniform(1 / 8), 0.0)
    scale = _maybe(u[3], geometry, _log_normal(0.2), 1.0)[0]
    either = 1 - jnp.sqrt(1 - geometry)  # so that one or both of the two turns is as likely as any other transformation
    before, after = (_maybe(u[i], either, _uniform(math.pi), 0.0)[0] for i in (4, 5))
    stretch = _maybe(u[6], geometry, _log_normal(0.2), 1.0)[0]
    fraction = _maybe(u[7], geometry, _normal(1 / 8), 0.0)

    dot = functools.partial(jnp.matmul, precision="highest")
    cos = jnp.array([1.0, 0.0, -1.0, 0.0], jnp.float32)  # exact
    blitted = dot(jnp.diag(jnp.stack([jnp.ones_like(mirror), mirror])), _turn(cos[quarter], cos[quarter - 1]))
    stretched = dot(jnp.diag(scale * jnp.stack([stretch, 1 / stretch])), _turn(jnp.cos(after), jnp.sin(after)))
    linear = dot(_turn(jnp.cos(before), jnp.sin(before)), stretched)
    return dot(blitted, linear), dot(blitted, dot(linear, fraction * size) + jnp.round(whole * size))


def _random_color(x: Array, u: Array, p: Array) -> Array:
    rgb = p * (x.shape[-1] == 3)
    return recolor(
        x,
        brightness=_maybe(u[0], p, _normal(0.2), 0.0)[0],
        contrast=_maybe(u[1], p, _log_normal(0.5), 1.0)[0],
        luma=_maybe(u[2], rgb, _sign, 1.0)[0],
        hue=_maybe(u[3], rgb, _uniform(math.pi), 0.0)[0],
        saturation=_maybe(u[4], rgb, _log_normal(1.0), 1.0)[0],
    )


def _maybe(u: Array, p: Array, draw: Callable[[Array], Array], otherwise: float) -> Array:
    """draw(u[1:]), two numbers, with probability p; u: [3], uniform in (0, 1)."""
    return jnp.where(u[0] < p, draw(u[1:]), otherwise)


def _sign(u: Array) -> Array:
    return jnp.where(u < 0.5, -1.0, 1.0)


def _uniform(most: float) -> Callable[[Array], Array]:
    return lambda u: most * (2 * u - 1)


def _normal(std: float) -> Callable[[Array], Array]:
    return lambda u: std * math.sqrt(2) * jax.lax.erf_inv(2 * u - 1)


def _log_normal(std: float) -> Callable[[Array], Array]:
    """Of base 2."""
    return lambda u: jnp.exp2(_normal(std)(u))


def _turn(cos: Array, sin: Array) -> Array:
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
