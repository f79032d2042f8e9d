"""Random, differentiable transformations of the images that a discriminator sees, real and generated alike.

They keep D from memorizing a small data set. The generator's optimum stays the same, because D sees both kinds transformed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Key
from gen.errors import UserError


@dataclass(frozen=True)
class Augmentation:
    """Base class of random transformations of images, with a strength p in [0, 1] that may change during training.

    A subclass defines `one`, and decides what p means. If p changes, the subclass also defines `start` and `adapt`.
    """

    def start(self) -> Array:
        """Returns the strength p of the first step, float32 []."""
        return jnp.ones((), jnp.float32)

    def apply(self, images: Array, key: Key, row: Array, p: Array) -> Array:
        """Returns the images transformed, in the same shape and dtype.

        The result is twice differentiable in the images, which the gradient penalties R1 and R2 need.

        images: [B, H, W, C] in [-1, 1]; the result may leave this range. row: int32 [B], positions in the global batch. The
        noise of an image depends on (key, row) alone, and is the same in every dtype. p: strength in [0, 1], [].
        """
        real = jnp.promote_types(images.dtype, jnp.float32)
        p = jnp.asarray(p, jnp.float32)

        def transform(x: Array, key: Key) -> Array:
            return self.one(x, key, p)

        return jax.vmap(transform)(images.astype(real), axis.example_keys(key, row)).astype(images.dtype)

    def one(self, x: Array, key: Key, p: Array) -> Array:
        """Transforms one image x [H, W, C], float32 or float64, at random. p: strength in [0, 1], float32 []."""
        raise NotImplementedError

    def adapt(self, p: Array, signs: Array, batch: int | Array) -> Array:
        """Returns the strength p [] for the next step of the discriminator D. By default p stays the same.

        p: strength of this step. signs: [], mean of sign(D(x)) over the real images x of this step, as transformed.
        batch: number of these images on all devices.
        """
        return p


@dataclass(frozen=True)
class DiffAugment(Augmentation):
    """A fixed sequence of transformations, applied to every image at full strength. Zhao et al. 2020."""

    policy: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation", "cutout")
    """Transformations, applied in the order given. color: random brightness, saturation and contrast. translation: shift by up
    to an eighth of each side. cutout: fill a rectangle, half as high and wide as the image, with mid-grey."""

    def __post_init__(self):
        check_policy(self.policy, tuple(DIFFERENTIABLE))

    def one(self, x: Array, key: Key, p: Array) -> Array:
        # Noise is drawn for all known transformations, so that the noise of each does not depend on the policy.
        u = dict(zip(DIFFERENTIABLE, jax.random.uniform(key, (len(DIFFERENTIABLE), 3), jnp.float32), strict=True))
        for name in self.policy:
            x = DIFFERENTIABLE[name](x, u[name])
        return x


def check_policy(policy: Sequence[str], known: Sequence[str]) -> None:
    """Checks the names of the transformations in a policy.

    Raises: UserError if the policy is empty, repeats a name, or has a name that is not in `known`.
    """
    if not policy or not set(policy) <= set(known) or len(set(policy)) < len(policy):
        raise UserError(
            f"policy is {', '.join(policy) or 'empty'}; it names one or more of {', '.join(known)}, each once"
        )


def jitter(x: Array, brightness: Array, saturation: Array, contrast: Array) -> Array:
    """Changes the brightness, then the saturation, then the contrast of an image x [H, W, C]. All three are scalars.

    brightness is added to all values. saturation scales each value's distance from its pixel's grey, the mean of the pixel's
    channels. contrast scales each value's distance from the mean of the image.
    """
    x = x + brightness
    grey = x.mean(-1, keepdims=True)
    mean = grey.mean()
    return mean + contrast * (grey + saturation * (x - grey) - mean)


def translate(x: Array, shift: Array) -> Array:
    """Returns x [H, W, C] moved by shift, int32 [2]: (down, right) in pixels, from -(H // 8, W // 8) to (H // 8, W // 8).

    Zeros (mid-grey) fill the gap.
    """
    h, w = x.shape[0] // 8, x.shape[1] // 8
    # Cutting from higher up in the padded image moves its content down.
    corner = (h - shift[0], w - shift[1], jnp.zeros_like(shift[0]))
    return jax.lax.dynamic_slice(jnp.pad(x, ((h, h), (w, w), (0, 0))), corner, x.shape)


def cutout(x: Array, corner: Array) -> Array:
    """Returns x [H, W, C] with zeros (mid-grey) on a rectangle of H // 2 by W // 2 pixels.

    corner: int32 [2], (row, column) of the rectangle's top left pixel. It may lie outside of the image: the rectangle is cut
    off at the border.
    """

    def inside(n: int, start: Array) -> Array:
        return (jnp.arange(n) >= start) & (jnp.arange(n) < start + n // 2)

    hole = inside(x.shape[0], corner[0])[:, None] & inside(x.shape[1], corner[1])[None, :]
    return jnp.where(hole[..., None], jnp.zeros_like(x), x)


def _random_jitter(x: Array, u: Array) -> Array:
    return jitter(x, u[0] - 0.5, 2 * u[1], u[2] + 0.5)


def _random_translate(x: Array, u: Array) -> Array:
    limit = jnp.array([x.shape[0] // 8, x.shape[1] // 8], jnp.int32)
    return translate(x, _below(2 * limit + 1, u[:2]) - limit)


def _random_cutout(x: Array, u: Array) -> Array:
    side, size = (jnp.array([n // k for n in x.shape[:2]], jnp.int32) for k in (1, 2))
    # A hole with an even side has its middle on an edge between pixels (n + 1 places, the borders included). A hole with
    # an odd side has it on a pixel (n places). Every place is equally likely.
    return cutout(x, _below(side + 1 - size % 2, u[:2]) - size // 2)


def _below(n: Array, u: Array) -> Array:
    """Maps uniform numbers u in [0, 1) to uniform integers in [0, n), int32. u and n broadcast."""
    return jnp.floor(n * u).astype(jnp.int32)


DIFFERENTIABLE: dict[str, Callable[[Array, Array], Array]] = {
    "color": _random_jitter,
    "translation": _random_translate,
    "cutout": _random_cutout,
}
"""The transformations of DiffAugment by name: (image [H, W, C], uniform random numbers [3] in [0, 1)) -> image."""
