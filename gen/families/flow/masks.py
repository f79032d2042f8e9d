"""Masks that show a flow a part of an example: some pixels, the mean of each square of pixels, or the brightness without colour.

A flow that reads such a part learns to complete the rest: to inpaint, upscale or colorize. Examples have the shape
[*axes, C], where *axes are the axes of positions, such as (height, width) of an image, and C is the number of channels.

A config names a mask: `given=Rectangle()`, or `given=AnyOf((Rectangle(), Coarse(4)))`. Subclass `Mask` to add one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gen.core import Array, Key
from gen.errors import UserError, check_fraction, check_positive

NOTHING_GIVEN = 0.1
"""Probability that a training example is hidden completely, so that a flow with masks also learns to generate whole pictures."""


class Known(NamedTuple):
    """The known values of examples, and a mask of their positions. Both arrays have the same leading axes [...].

    *axes are the axes of positions, such as (height, width), and C is the number of channels.
    """

    image: Array
    """[..., *axes, C]. The known values, or 0 at hidden positions."""
    mask: Array
    """[..., *axes, 1]. 1: the position is known. 0: it is hidden. 1 / n: only the mean of n values is known, which `image` holds at
    each of them."""

    def paste(self, x: Array) -> Array:
        """Returns x, in the shape of `image`, with the values of `image` copied into it where the mask is 1.

        All other values of x are unchanged, also where only a mean is known.
        """
        return jnp.where(self.mask == 1, self.image, x)


@dataclass(frozen=True)
class Mask:
    """Base class of random masks, each of which hides a part of an example. Subclass it to add one."""

    def draw(self, key: Key, x: Array) -> Known:
        """Draws a random mask for one example x [*axes, C]. Returns the values of x that it shows, and the mask."""
        raise NotImplementedError


@dataclass(frozen=True)
class Rectangle(Mask):
    """Hides a random rectangle (inpainting), or everything outside of the rectangle (outpainting)."""

    outside: float = 0.25
    """Probability that the outside of the rectangle is hidden, in [0, 1]. Otherwise the inside is hidden."""

    def __post_init__(self):
        check_fraction(outside=self.outside)

    def draw(self, key: Key, x: Array) -> Known:
        # The rectangle may cover the whole example, or nothing of it. Both are rare.
        corner_key, choice_key = jax.random.split(key)
        inside = jnp.ones((*x.shape[:-1], 1), bool)
        for i, size in enumerate(x.shape[:-1]):
            # The rectangle's first and last position on this axis. Both are uniform, so sides of all lengths occur.
            ends = jax.random.randint(jax.random.fold_in(corner_key, i), (2,), 0, size + 1)
            at = along(size, i, x)
            inside &= (ends.min() <= at) & (at < ends.max())
        return show(x, inside == jax.random.bernoulli(choice_key, self.outside))


@dataclass(frozen=True)
class Half(Mask):
    """Hides one half along a random axis: the left, right, top or bottom half of an image. All are equally likely."""

    def draw(self, key: Key, x: Array) -> Known:
        axis_key, side_key = jax.random.split(key)
        axes = x.shape[:-1]
        firsts = [jnp.broadcast_to(along(size, i, x) < size // 2, (*axes, 1)) for i, size in enumerate(axes)]
        first = jnp.stack(firsts)[jax.random.randint(axis_key, (), 0, len(axes))]
        # A coin decides which half is shown: the first if it is True, and the second if it is False.
        return show(x, first == jax.random.bernoulli(side_key))


@dataclass(frozen=True)
class Scattered(Mask):
    """Shows each position independently with the same probability, which is drawn uniformly from [0, 1] for each example."""

    def draw(self, key: Key, x: Array) -> Known:
        rate_key, choice_key = jax.random.split(key)
        # With one fixed rate, the network would never see pictures with more or fewer known pixels.
        rate = jax.random.uniform(rate_key, dtype=x.dtype)
        return show(x, jax.random.uniform(choice_key, (*x.shape[:-1], 1), x.dtype) < rate)


@dataclass(frozen=True)
class Coarse(Mask):
    """Shows only the mean of each square of positions (super-resolution)."""

    factor: int = 4
    """Side of the squares in positions, at least 2. It must divide the height and the width."""

    def __post_init__(self):
        if self.factor < 2:
            raise UserError(
                f"factor of Coarse is {self.factor}; a square of one pixel hides nothing, so use at least 2"
            )

    def draw(self, key: Key, x: Array) -> Known:
        return enlarge(shrink(x, self.factor), self.factor)


@dataclass(frozen=True)
class Brightness(Mask):
    """Shows only the mean of the channels at each position (colourization)."""

    def draw(self, key: Key, x: Array) -> Known:
        if x.shape[-1] == 1:
            raise UserError("the mask Brightness needs colours, and the pictures are grey; choose another mask")
        return without_color(x, x.shape[-1])


@dataclass(frozen=True)
class AnyOf(Mask):
    """Draws one of several masks for each example."""

    masks: tuple[Mask, ...] = (Rectangle(), Half(), Scattered())
    """The masks. Each has the same probability."""

    def __post_init__(self):
        check_positive(**{"the number of masks": len(self.masks)})

    def draw(self, key: Key, x: Array) -> Known:
        choice_key, draw_key = jax.random.split(key)
        # Under vmap, `switch` draws all masks and keeps one. That is cheap compared with the network.
        choice = jax.random.randint(choice_key, (), 0, len(self.masks))
        return jax.lax.switch(choice, [mask.draw for mask in self.masks], draw_key, x)


def draw_known(mask: Mask, keys: Key, x: Array) -> Known:
    """Draws a random mask for each training example x [B, *axes, C]. Returns the values that are shown, and the masks.

    With probability NOTHING_GIVEN, an example is hidden completely instead. keys: one per example, [B].
    """

    def draw(key: Key, x: Array) -> Known:
        nothing_key, mask_key = jax.random.split(key)
        hidden = jax.random.bernoulli(nothing_key, NOTHING_GIVEN)
        return jax.tree.map(partial(jnp.where, hidden), nothing(x), mask.draw(mask_key, x))

    return jax.vmap(draw)(keys, x)


def along(size: int, axis: int, x: Array) -> Array:
    """Returns the positions 0 ... size - 1 along axis number `axis` of x [*axes, C], in a shape that broadcasts to x.

    size: size of this axis of x. All other axes of the result have size 1.
    """
    return jnp.arange(size).reshape(tuple(size if i == axis else 1 for i in range(x.ndim)))


def nothing(x: Array) -> Known:
    """Returns the known values and the mask of examples x [..., C] of which nothing is known: both are 0."""
    return Known(jnp.zeros_like(x), jnp.zeros_like(x[..., :1]))


def show(x: Array, known: Array) -> Known:
    """Returns the known values, x [..., C] where `known`, bool [..., 1], is true and otherwise 0, and the mask."""
    # `where` and not a product with the mask, because 0 * nan is nan.
    mask = known.astype(x.dtype)
    return Known(jnp.where(known, x, 0), mask)


def shrink(x: Array, factor: int) -> Array:
    """Returns the mean of each square of side `factor` of one example x: [*axes, C] -> [*(axes / factor), C].

    Raises: UserError if `factor` does not divide all axes.
    """
    sides = x.shape[:-1]
    if any(size % factor for size in sides):
        raise UserError(
            f"squares of side {factor} do not divide {'x'.join(map(str, sides))} positions; choose a factor that does"
        )
    # Each axis is split in two: the index of a square, and the position inside of it.
    blocks = x.reshape(*(part for size in sides for part in (size // factor, factor)), x.shape[-1])
    return blocks.mean(tuple(range(1, 2 * len(sides), 2)))


def enlarge(means: Array, factor: int) -> Known:
    """Returns the known values and the mask of one example, if only the mean of each square of side `factor` is known.

    means: the mean of each square, [*axes, C]. The example, and so the result, has `factor` times as many positions
    along each of the axes. A mean is repeated at all positions of its square. The mask is 1 / (positions in a square).
    """
    image = means
    for i in range(means.ndim - 1):
        image = image.repeat(factor, axis=i)
    return Known(image, jnp.full((*image.shape[:-1], 1), 1 / factor ** (means.ndim - 1), image.dtype))


def without_color(x: Array, channels: int) -> Known:
    """Returns the known values and the mask of examples, if only their mean over channels is known.

    x: pictures with any number of channels, [..., C], of which only the mean over channels is read. channels: number of
    channels of the examples, and so of the known values. The mask is 1 / channels.
    """
    mean = x.mean(-1, keepdims=True)
    return Known(mean.repeat(channels, axis=-1), jnp.full_like(mean, 1 / channels))
