"""Samples from a trained flow: the request, from noise to examples, and back from examples to their noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_fraction, check_not_negative, check_positive
from gen.families.flow.samplers import SAMPLERS, Velocity
from gen.families.labels import LabelRequest


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
    """Steps from noise to sample. The network is evaluated once per step, and twice with heun. Guidance doubles the evaluations."""
    sampler: Literal["euler", "heun", "multistep"] = "multistep"
    """Solver: Euler (order 1), Heun (order 2) or a second-order multistep method."""
    guidance: float = 1.0
    """Weight w of the label or caption c: v(x) + w (v(x | c) - v(x)). Above 1, samples are more typical of c and less varied."""
    guidance_from: float = 0.0
    """Lower end of the interval of times t in which guidance is used, in [0, 1]. t = 1 is noise. Kynkäänniemi et al. 2024."""
    guidance_to: float = 1.0
    """Upper end of the interval of times t in which guidance is used, in [0, 1]."""
    mode: Literal["generate", "inpaint", "upscale", "colorize", "edit"] = "generate"
    """`generate`: samples from noise; a run on pairs translates --image. `inpaint`: fills the white part of --mask in --image.
    `upscale`: samples that look like the smaller --image if they are shrunk. `colorize`: samples with the brightness of --image.
    These three need a model that was trained with masks (`given`). `edit`: adds noise to --image, and removes it again (Meng et al.
    2022)."""
    strength: float = 0.5
    """Mode edit: time t up to which noise is added, in [0, 1]. 0 keeps the picture, and 1 keeps nothing of it."""

    def __post_init__(self):
        super().__post_init__()
        check_fraction(strength=self.strength)
        check_positive(steps=self.steps)
        check_not_negative(guidance=self.guidance)
        if not 0 <= self.guidance_from < self.guidance_to <= 1:
            raise UserError(
                f"guidance_from is {self.guidance_from} and guidance_to is {self.guidance_to}; they are times, 0 <= from < "
                "to <= 1"
            )
        self._check_used()

    def _check_used(self) -> None:
        """Raises: UserError for a field that differs from its default, and has no effect with the other fields."""
        if self.mode != "edit" and self.strength != type(self).strength:
            raise UserError(f"strength is not used by mode {self.mode}; the fix: --mode edit, or leave --strength out")
        for name in ("guidance_from", "guidance_to"):
            if self.guidance == 1 and getattr(self, name) != getattr(type(self), name):
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{name} is not used by guidance 1; the fix: --guidance above 1, or leave {option} out")

    def guided(self, t: Array) -> Array:
        """Returns whether guidance changes the velocity at the times t, bool [...]."""
        return (self.guidance != 1) & (self.guidance_from <= t) & (t <= self.guidance_to)


@dataclass(frozen=True)
class OneStepRequest(Request):
    """Request to a model of mean velocities (MeanFlow). It takes one step by default."""

    steps: int = 1
    sampler: Literal["euler", "heun", "multistep"] = "euler"


def generate(velocity: Velocity, noise: Array, request: Request, start: float = 1.0) -> Array:
    """Follows the velocity from noise [B, ...] at t = 1 to examples at t = 0.

    start: time at which to begin, in (0, 1]. Below 1, `noise` is x_t at that time.
    """
    # Times fall from `start` to 0, because t = 1 is noise.
    return SAMPLERS[request.sampler](velocity, noise, start * _times(request, noise)[::-1], request.guided)


def invert(velocity: Velocity, x: Array, request: Request) -> Array:
    """Follows the velocity from examples x [B, ...] at t = 0 to their noise at t = 1, from which `generate` makes them again.

    They come back with an error, which is smaller with more steps (request.steps).
    """
    return SAMPLERS[request.sampler](velocity, x, _times(request, x), request.guided)


def _times(request: Request, x: Array) -> Array:
    return jnp.linspace(0, 1, request.steps + 1, dtype=x.dtype)
