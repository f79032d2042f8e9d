"""Sampling from a trained flow: the request, and the functions that turn noise into examples, and examples into noise."""

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
    """Solver of the differential equation: euler (order 1), heun (order 2) or multistep (order 2, Adams-Bashforth)."""
    guidance: float = 1.0
    """Weight w of the label or caption c in the velocity v(x) + w (v(x | c) - v(x)). Above 1, samples are more typical of c and
    less varied. 1: no guidance."""
    guidance_from: float = 0.0
    """Guidance is used at times t from this one to guidance_to, in [0, 1]. t = 1 is noise, and t = 0 the sample (Kynkäänniemi et
    al. 2024)."""
    guidance_to: float = 1.0
    """Upper end of the times t at which guidance is used, in [0, 1]. See guidance_from."""
    mode: Literal["generate", "inpaint", "upscale", "colorize", "edit"] = "generate"
    """`generate`: makes samples from noise, or translates --image if the run is on pairs. `inpaint`: fills the part of --image
    that is white in --mask. `upscale`: makes larger versions of --image. `colorize`: makes pictures with the brightness of --image.
    `edit`: adds noise to --image, and removes it again (Meng et al. 2022). inpaint, upscale and colorize need a model that was
    trained with masks (--model.given)."""
    strength: float = 0.5
    """In mode edit, the time t in [0, 1] up to which noise is added. 0 returns the picture, and 1 keeps nothing of it."""

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
        """Raises: UserError for a field that differs from its default although the mode or the guidance ignores it."""
        if self.mode != "edit" and self.strength != type(self).strength:
            raise UserError(f"strength is not used by mode {self.mode}; the fix: --mode edit, or leave --strength out")
        for name in ("guidance_from", "guidance_to"):
            if self.guidance == 1 and getattr(self, name) != getattr(type(self), name):
                option = f"--{name.replace('_', '-')}"
                raise UserError(f"{name} is not used by guidance 1; the fix: --guidance above 1, or leave {option} out")

    def guided(self, t: Array) -> Array:
        """Returns whether guidance is used at the times t, bool in the shape of t."""
        return (self.guidance != 1) & (self.guidance_from <= t) & (t <= self.guidance_to)


@dataclass(frozen=True)
class OneStepRequest(Request):
    """Request to a model of mean velocities (MeanFlow). By default it takes one Euler step from noise to sample."""

    steps: int = 1
    sampler: Literal["euler", "heun", "multistep"] = "euler"


def generate(velocity: Velocity, noise: Array, request: Request, start: float = 1.0) -> Array:
    """Moves noise [B, ...] along the velocity from t = 1 to t = 0, and returns the examples [B, ...].

    request: has the solver and its number of steps. start: time at which to begin, in (0, 1]. If it is below 1, `noise`
    must be x_t at the time t = start, a mixture of an example and noise.
    """
    # Times fall from `start` to 0, because t = 1 is noise.
    return SAMPLERS[request.sampler](velocity, noise, start * _times(request, noise)[::-1], request.guided)


def invert(velocity: Velocity, x: Array, request: Request) -> Array:
    """Moves examples x [B, ...] along the velocity from t = 0 to t = 1, and returns their noise [B, ...].

    `generate` turns this noise into the examples again, up to an error that falls with the number of steps (request.steps).
    """
    return SAMPLERS[request.sampler](velocity, x, _times(request, x), request.guided)


def _times(request: Request, x: Array) -> Array:
    return jnp.linspace(0, 1, request.steps + 1, dtype=x.dtype)
