"""Adaptive discriminator augmentation (Karras et al. 2020): random transformations, more frequent the more D overfits."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from gen.core import Array, Key
from gen.errors import UserError, check_positive
from gen.families.gan.augment import Augmentation, check_policy

Sampler = Callable[[Array], Array]
"""Maps uniform numbers in (0, 1) to samples of another distribution, element by element: same shape."""


@dataclass(frozen=True)
class ADA(Augmentation):
    """Adaptive discriminator augmentation: applies each transformation with probability p. Karras et al. 2020, section 3
    and appendix B.

    p is 0 at first. After each step of the discriminator D, p rises if the mean of sign(D(x)) over real images x is
    above `target`, because D overfits. If the mean is below `target`, p falls. Differences from the paper: images are
    warped by bilinear interpolation, without filters against aliasing, and grey images are never inverted by a luma
    flip.
    """

    policy: tuple[Literal["blit", "geometry", "color"], ...] = ("blit", "geometry", "color")
    """Groups of transformations. blit: mirroring, rotations by multiples of 90 degrees, shifts by whole pixels.
    geometry: scale, rotation, stretch, shifts by any distance. color: brightness and contrast, and for RGB luma flip,
    hue and saturation."""
    target: float = 0.6
    """Target of the mean of sign(D(x)) over real images x, in (-1, 1). p rises while the mean is above it."""
    kimg: float = 500.0
    """Thousands of real images in which p goes from 0 to 1, if p rises at every step."""

    def __post_init__(self):
        check_policy(self.policy, ("blit", "geometry", "color"))
        check_positive(kimg=self.kimg)
        if not -1 < self.target < 1:
            raise UserError(f"target is {self.target}; it is a mean of signs, so it must be above -1 and below 1")

    def start(self) -> Array:
        return jnp.zeros((), jnp.float32)

    def adapt(self, p: Array, signs: Array, batch: int | Array) -> Array:
        return jnp.clip(p + jnp.sign(signs - self.target) * (batch / (1000 * self.kimg)), 0, 1).astype(p.dtype)

    def one(self, x: Array, key: Key, p: Array) -> Array:
        # One draw for all noise, because each draw adds half a second of compile time. The minimum is above 0, where the
        # inverse distribution function of the normal is infinite.
        u = jax.random.uniform(key, (13, 3), jnp.float32, minval=1e-7)
        blit, geometry, color = (p * (group in self.policy) for group in ("blit", "geometry", "color"))
        if "blit" in self.policy or "geometry" in self.policy:
            x = warp(x, *_random_motion(u[:8], jnp.array(x.shape[:2], jnp.float32), blit, geometry))
        return _random_color(x, u[8:], color) if "color" in self.policy else x


def warp(x: Array, linear: Array, shift: Array) -> Array:
    """Warps the image x [H, W, C] by an affine map: the result at position q is x at position linear @ q + shift.

    linear: [2, 2]; shift: [2]. Positions and shift are (down, right) in pixels, and positions are relative to the middle of
    the image. x is interpolated bilinearly, and continued beyond its border by reflection about the outermost pixels.
    Where linear @ q + shift is the exact position of a pixel of x, the result has the exact value of this pixel.
    """
    # Pixels are at 0 to n - 1, so a flip about (n - 1) / 2 maps pixels exactly onto pixels.
    middle = [(n - 1) / 2 for n in x.shape[:2]]
    down, right = jnp.meshgrid(*(jnp.arange(n) - m for n, m in zip(x.shape[:2], middle, strict=True)), indexing="ij")
    source = [a * down + b * right + (t + m) for (a, b), t, m in zip(linear, shift, middle, strict=True)]
    sample = functools.partial(map_coordinates, coordinates=source, order=1, mode="mirror")
    return jax.vmap(sample, in_axes=-1, out_axes=-1)(x)


def recolor(x: Array, brightness: Array, contrast: Array, luma: Array, hue: Array, saturation: Array) -> Array:
    """Returns contrast * (luma * (grey + brightness) + saturation * (chroma rotated by hue)) for each pixel of x [..., C].

    grey: the mean of the pixel's channels; chroma: the pixel minus grey. All other arguments are scalars. luma: 1, or -1 to
    invert grey. hue: an angle in radians about the axis (1, 1, 1); it must be 0 unless C = 3. Karras et al. 2020, appendix B.
    """
    grey = x.mean(-1, keepdims=True)
    chroma = x - grey
    # The cross product of (1, 1, 1) / sqrt(3) and chroma: chroma rotated by a quarter turn.
    across = (jnp.roll(chroma, 1, -1) - jnp.roll(chroma, -1, -1)) / math.sqrt(3)
    # Written as a change of x, so that neutral parameters return every bit of x.
    change = luma * brightness + (luma - 1) * grey + (saturation * jnp.cos(hue) - 1) * chroma
    return contrast * (x + change + saturation * jnp.sin(hue) * across)


def _random_motion(u: Array, size: Array, blit: Array, geometry: Array) -> tuple[Array, Array]:
    """Returns a random affine map for `warp`: its arguments `linear` [2, 2] and `shift` [2].

    u: [8, 3], uniform random numbers in (0, 1). size: float32 [2], (H, W) of the image. blit, geometry: probability
    with which each transformation of the group "blit" or "geometry" is applied (see `ADA.policy`).
    """
    # warp needs the map from a pixel back to its source. It is drawn directly, because each transformation is as likely as
    # its inverse.
    mirror = _maybe(u[0], blit, _sign, 1.0)[0]
    quarter = _maybe(u[1], blit, _quarter_turns, 0.0)[0].astype(jnp.int32)
    whole = _maybe(u[2], blit, _uniform(1 / 8), 0.0)
    scale = _maybe(u[3], geometry, _log_normal(0.2), 1.0)[0]
    # Two rotations, before and after the stretch. The probability that at least one happens is `geometry`.
    either = 1 - jnp.sqrt(1 - geometry)
    before, after = (_maybe(u[i], either, _uniform(math.pi), 0.0)[0] for i in (4, 5))
    stretch = _maybe(u[6], geometry, _log_normal(0.2), 1.0)[0]
    fraction = _maybe(u[7], geometry, _normal(1 / 8), 0.0)

    dot = functools.partial(jnp.matmul, precision="highest")
    # Cosines of quarter turns from a table, so that blits move whole pixels and interpolate nothing.
    cos = jnp.array([1.0, 0.0, -1.0, 0.0], jnp.float32)
    blitted = dot(jnp.diag(jnp.stack([jnp.ones_like(mirror), mirror])), _rotation(cos[quarter], cos[quarter - 1]))
    stretched = dot(jnp.diag(scale * jnp.stack([stretch, 1 / stretch])), _rotation(jnp.cos(after), jnp.sin(after)))
    linear = dot(_rotation(jnp.cos(before), jnp.sin(before)), stretched)
    return dot(blitted, linear), dot(blitted, dot(linear, fraction * size) + jnp.round(whole * size))


def _random_color(x: Array, u: Array, p: Array) -> Array:
    """Randomly changes brightness, contrast, luma, hue and saturation of the image x [H, W, C] (see `recolor`).

    Each of these changes is made with probability p. Luma, hue and saturation are only changed if C = 3. u: [5, 3],
    uniform random numbers in (0, 1).
    """
    # Luma flip, hue and saturation need colours.
    rgb = p * (x.shape[-1] == 3)
    return recolor(
        x,
        brightness=_maybe(u[0], p, _normal(0.2), 0.0)[0],
        contrast=_maybe(u[1], p, _log_normal(0.5), 1.0)[0],
        luma=_maybe(u[2], rgb, _sign, 1.0)[0],
        hue=_maybe(u[3], rgb, _uniform(math.pi), 0.0)[0],
        saturation=_maybe(u[4], rgb, _log_normal(1.0), 1.0)[0],
    )


def _maybe(u: Array, p: Array, draw: Sampler, otherwise: float) -> Array:
    """Returns the two samples draw(u[1:]), [2], with probability p, and otherwise the number `otherwise` twice, [2].

    u: [3], uniform random numbers in (0, 1).
    """
    return jnp.where(u[0] < p, draw(u[1:]), otherwise)


def _sign(u: Array) -> Array:
    return jnp.where(u < 0.5, -1.0, 1.0)


def _quarter_turns(u: Array) -> Array:
    return jnp.floor(4 * u)


def _uniform(limit: float) -> Sampler:
    """Returns a sampler of the uniform distribution on [-limit, limit]."""

    def draw(u: Array) -> Array:
        return limit * (2 * u - 1)

    return draw


def _normal(std: float) -> Sampler:
    """Returns a sampler of N(0, std^2), by the inverse of its distribution function."""

    def draw(u: Array) -> Array:
        return std * math.sqrt(2) * jax.lax.erf_inv(2 * u - 1)

    return draw


def _log_normal(std: float) -> Sampler:
    """Returns a sampler of 2^n, where n ~ N(0, std^2)."""
    exponent = _normal(std)

    def draw(u: Array) -> Array:
        return jnp.exp2(exponent(u))

    return draw


def _rotation(cos: Array, sin: Array) -> Array:
    """Returns the matrix [2, 2] of the rotation by an angle, from the angle's cosine [] and sine []."""
    return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])])
