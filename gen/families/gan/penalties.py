"""Penalties on the gradient of the discriminator's score with respect to its image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.nn import relu

from gen import axis
from gen.core import Array, Key

Score = Callable[[Array], Array]
"""D as a function of its images alone: [B, ...] -> scores [N]. Each score belongs to `pack` = B / N neighbouring images."""


def squared_gradient(score: Score, x: Array) -> Array:
    """Returns |grad_x D(x)|^2 of each score, [N], at images x [B, ...]. Mescheder et al. 2018.

    At real images it is the R1 penalty, and at generated images the R2 penalty, both without their factor gamma / 2.
    """

    def total(x: Array) -> tuple[Array, Array]:
        scores = score(x)
        return scores.sum(), scores

    # No two scores depend on the same image, so the gradient of the sum holds the gradient of each score. Batch normalization would
    # break this, and the family refuses it.
    gradient, scores = jax.grad(total, has_aux=True)(x)
    return jnp.square(gradient).reshape(scores.shape[0], -1).sum(-1)


def gradient_penalty(score: Score, x: Array, one_sided: bool) -> Array:
    """Returns (|grad_x D(x)| - 1)^2 of each score, [N], at points x [B, ...]. Gulrajani et al. 2017, equation 3.

    one_sided: penalize only norms above 1 (section 4 of that paper; Petzka et al. 2018).
    """
    # The constant keeps the gradient of the root finite where D is flat.
    norm = jnp.sqrt(squared_gradient(score, x) + 1e-12)
    return jnp.square(relu(norm - 1) if one_sided else norm - 1)


def between(real: Array, fake: Array, key: Key, row: Array) -> Array:
    """Draws a random point on the line between each real image and its generated image, uniformly: [B, H, W, C].

    Gulrajani et al. 2017, algorithm 1.

    real, fake: [B, H, W, C]. row: int32 [N], position in the global batch of each pack, which is B / N neighbouring
    images with one joint score. All images of a pack are mixed in the same proportion. The noise depends on (key, row)
    alone.
    """

    def draw(key: Key) -> Array:
        return jax.random.uniform(key, (1, 1, 1), real.dtype)

    # The images of a pack have the same t: the line is between two packs.
    t = jnp.repeat(axis.per_example(draw, key, row), len(real) // len(row), axis=0)
    return real + t * (fake - real)


class Penalties(NamedTuple):
    """Gradient penalties of D, each with its weight. Calling the object computes their weighted sum."""

    gradient: float
    """Weight of `gradient_penalty` at points between real and generated images. 0: off."""
    one_sided: bool
    """Whether `gradient_penalty` penalizes only norms above 1."""
    r1: optax.Schedule | None
    """Step -> gamma of R1, which is gamma / 2 |grad D|^2 at real images. None: off."""
    r2: optax.Schedule | None
    """Step -> gamma of R2, which is gamma / 2 |grad D|^2 at generated images. None: off."""

    def __call__(
        self, on_real: Score, on_fake: Score, real: Array, fake: Array, key: Key, row: Array, step: Array
    ) -> Array:
        """Returns the weighted sum of the penalties, a scalar. Each penalty is a mean over scores.

        on_real, on_fake: D with the same augmentation and dropout as when it scored the real or the generated images.
        real, fake: [B, H, W, C]. row: int32 [N], position of each score's first image in the global batch. The random
        points of the gradient penalty depend on (key, row) alone. step: int32 [], read by the schedules of R1 and R2.
        """
        penalty = jnp.zeros((), real.dtype)
        if self.gradient:
            points = between(real, fake, key, row)
            penalty += self.gradient * gradient_penalty(on_real, points, self.one_sided).mean()
        if self.r1 is not None:
            penalty += self.r1(step) / 2 * squared_gradient(on_real, real).mean()
        if self.r2 is not None:
            penalty += self.r2(step) / 2 * squared_gradient(on_fake, fake).mean()
        return penalty
