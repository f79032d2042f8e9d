"""How a trained flow is sampled: the request, guidance, and the way back from an example to its noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_fraction, check_not_negative, check_positive
from gen.families.flow.samplers import SAMPLERS, Velocity
from gen.families.labels import LabelRequest

MAX_SAMPLES = 100_000
"""Largest number of samples in one request."""


@dataclass(frozen=True)
class Request(LabelRequest):
    """Which samples to generate, and how the differential equation is solved."""

    pictures: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "generate": ("source",),
        "inpaint": ("image", "mask"),
        "upscale": ("image",),
        "colorize": ("image",),
        "edit": ("image",),
    }

    steps: int = 12
    """Steps from noise to sample. The network is evaluated once per step, by heun twice, and twice as often with guidance."""
    sampler: Literal["euler", "heun", "multistep"] = "multistep"
    """Solver: Euler (order 1), Heun (order 2) or a second-order multistep method."""
    guidance: float = 1.0
    """Weight w of the label or caption c: v(x) + w (v(x | c) - v(x)). Above 1, samples are more typical of c and less varied."""
    guidance_from: float = 0.0
    """Guidance is used at times t from here, in [0, 1]. t = 1 is noise. Kynkäänniemi et al. 2024."""
    guidance_to: float = 1.0
    """Guidance is used at times t up to here."""
    mode: Literal["generate", "inpaint", "upscale", "colorize", "edit"] = "generate"
    """`generate`: samples of noise, or, of pairs, translations of --image. `inpaint`: fills the white part of --mask in --image.
    `upscale`: samples whose squares of pixels have the means in a smaller --image. `colorize`: samples with the brightness of
    --image. These three need a model that was trained with masks (`given`). `edit`: adds noise to --image and removes it again
    (Meng et al. 2022)."""
    strength: float = 0.5
    """Of an edit: the time t to which noise is added, in [0, 1]. 0 keeps the picture, and 1 keeps nothing of it."""

    def __post_init__(self):
        super().__post_init__()
        check_fraction(strength=self.strength)
        check_positive(steps=self.steps)
        check_not_negative(guidance=self.guidance)
        if self.n > MAX_SAMPLES:
            raise UserError(f"n is {self.n}; a request has at most {MAX_SAMPLES} samples; use other seeds for more")
        if not 0 <= self.guidance_from < self.guidance_to <= 1:
            raise UserError(
                f"guidance_from is {self.guidance_from} and guidance_to is {self.guidance_to}; they are times, 0 <= from < "
                "to <= 1"
            )


@dataclass(frozen=True)
class OneStepRequest(Request):
    """Request of a model of mean velocities. More steps are possible."""

    steps: int = 1
    sampler: Literal["euler", "heun", "multistep"] = "euler"


def generate(velocity: Velocity, noise: Array, request: Request, start: float = 1.0) -> Array:
    """Follows the velocity from noise [B, ...] at t = 1 to examples at t = 0. start: another time to begin at, in (0, 1]."""
    # Time runs backwards: it is 1 at the noise.
    return SAMPLERS[request.sampler](velocity, noise, start * _times(request, noise)[::-1])


def invert(velocity: Velocity, x: Array, request: Request) -> Array:
    """Follows the velocity from examples x [B, ...] at t = 0 to their noise at t = 1, from which `generate` makes them again.

    The difference is the error of the sampler, which falls with request.steps.
    """
    return SAMPLERS[request.sampler](velocity, x, _times(request, x))


def _times(request: Request, x: Array) -> Array:
    return jnp.linspace(0, 1, request.steps + 1, dtype=x.dtype)
