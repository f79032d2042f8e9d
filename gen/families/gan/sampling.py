"""Inputs of a trained generator: the request, latents and labels drawn for it, and interpolations between latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from gen.core import Array, Key
from gen.errors import check_positive
from gen.families.gan.players import GeneratorModel
from gen.families.labels import LabelRequest, labels_to_generate

ROW_LENGTH = 8
"""Number of images in a row of an interpolation."""
GENERATE_CHUNK = 1024
"""Number of images that are generated at once. It bounds the memory of a large request."""


@dataclass(frozen=True)
class Request(LabelRequest):
    """Which images to generate."""

    mode: Literal["generate", "interpolate"] = "generate"
    """generate: independent samples. interpolate: n // 8 rows of 8 images. Each row leads from one sample to the next, along a
    great circle (slerp)."""
    truncation: float | None = None
    """Draw each number of a latent from the standard normal restricted to [-truncation, truncation] (Brock et al. 2019). Smaller
    values give more typical images with less variety. None: no restriction."""

    def __post_init__(self):
        super().__post_init__()
        if self.truncation is not None:
            check_positive(truncation=self.truncation)

    @property
    def rows(self) -> int:
        """Number of rows of an interpolation, at least 1."""
        return max(1, self.n // ROW_LENGTH)


class Draw(NamedTuple):
    """Inputs of G for N images."""

    latents: Array
    """[N, latent]."""
    labels: Array | None
    """int32 [N]. None: the model is unconditional."""


def draw_inputs(generator: GeneratorModel, key: Key, given: Mapping[str, Array], request: Request) -> Draw:
    """Draws the latents and the labels of the N images of a request.

    N is request.n in mode generate, and request.rows * ROW_LENGTH in mode interpolate, in the order of the rows.

    given: input arrays of GenerativeModel.generate. They may hold the classes of the N images of mode generate, or of
        the request.rows + 1 ends of mode interpolate, under the key gen.families.labels.GIVEN.

    Raises: UserError for a label that the model does not have.
    """
    # Each row of an interpolation needs two ends, and neighbouring rows share one.
    n = request.n if request.mode == "generate" else request.rows + 1
    latents = generator.latents(key, jnp.arange(n), request.truncation)
    labels = labels_to_generate(n, request.label, generator.classes, given)
    if request.mode == "generate":
        return Draw(latents, labels)
    # A row keeps the label of the sample that it starts from.
    return Draw(interpolate(latents), None if labels is None else jnp.repeat(labels[:-1], ROW_LENGTH))


def interpolate(ends: Array) -> Array:
    """Returns ROW_LENGTH points on the path from each latent of `ends` to the next latent, both included.

    ends: [rows + 1, D]. Returns [rows * ROW_LENGTH, D]. Paths are as in `slerp`.
    """

    def at(t: Array) -> Array:
        return slerp(ends[:-1], ends[1:], t)

    return jax.vmap(at, out_axes=1)(jnp.linspace(0, 1, ROW_LENGTH)).reshape(-1, ends.shape[-1])


def slerp(a: Array, b: Array, t: Array) -> Array:
    """Returns the points [N, D] at fraction t of the paths from a [N, D] to b [N, D]. t: scalar in [0, 1].

    The direction follows a great circle (White 2016, equation 1), and the length changes linearly.
    """

    def length(v: Array) -> Array:
        return jnp.linalg.norm(v, axis=-1, keepdims=True)

    u, v = a / length(a), b / length(b)
    # The margin keeps the angle, which divides below, away from 0 and pi.
    omega = jnp.arccos(jnp.clip((u * v).sum(-1, keepdims=True), -1 + 1e-7, 1 - 1e-7))
    direction = (jnp.sin((1 - t) * omega) * u + jnp.sin(t * omega) * v) / jnp.sin(omega)
    return ((1 - t) * length(a) + t * length(b)) * direction
