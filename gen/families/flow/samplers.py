"""Solvers of the flow's differential equation dx/dt = v(x, t), as pure functions.

A sampler follows a velocity through `times`, [steps + 1]. Times that fall from 1 to 0 turn noise into samples. Times that rise from
0 to 1 turn examples into noise. Each sampler is a scan, so the size of the compiled program does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen.core import Array

Velocity = Callable[[Array, Array, Array], Array]
"""(x [B, ...], t [], s []) -> dx/dt at the time t. A model of mean velocities returns the mean from t to s, if s < t."""
Regime = Callable[[Array], Array]
"""t [] -> a bool or a number that is constant where the velocity is continuous in t. It changes where the velocity jumps, as at the
ends of the interval of guidance. Steps in different regimes must not share a slope."""
Sampler = Callable[[Velocity, Array, Array, Regime], Array]
"""(velocity, x at times[0], times, regime) -> x at times[-1]."""


def no_jumps(t: Array) -> Array:
    """Returns 0 for all times: the velocity jumps nowhere."""
    return jnp.zeros_like(t)


def euler(velocity: Velocity, x: Array, times: Array, regime: Regime) -> Array:
    """Follows the velocity at the beginning of each step. Order 1; one evaluation per step. With exact mean velocities it is exact."""

    def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = ends
        return x + (s - t) * velocity(x, t, s), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def heun(velocity: Velocity, x: Array, times: Array, regime: Regime) -> Array:
    """Follows the average of the velocities at both ends of each step. Order 2; two evaluations per step. Karras et al. 2022."""

    def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = ends
        v = velocity(x, t, t)
        w = velocity(x + (s - t) * v, s, s)
        return x + (s - t) * (v + w) / 2, None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def multistep(velocity: Velocity, x: Array, times: Array, regime: Regime) -> Array:
    """Extrapolates the velocity linearly from the beginnings of this step and of the previous one (Adams and Bashforth).

    Order 2; one evaluation per step. Steps may have different lengths. The first step is an Euler step, and so is the first one after
    a jump of the velocity.
    """
    # An infinite step before a step makes the slope 0.
    infinite = jnp.full((), jnp.inf, times.dtype)

    def step(carry: Carry, ends: tuple[Array, Array]) -> tuple[Carry, None]:
        x, last_v, last_h, last_regime = carry
        t, s = ends
        v, h, here = velocity(x, t, t), s - t, regime(t)
        # A line through velocities on both sides of a jump would lead away from both.
        last_h = jnp.where(here == last_regime, last_h, infinite)
        # The integral over the step of v + (v - last_v) (time since t) / last_h.
        return (x + h * (v + h / (2 * last_h) * (v - last_v)), v, h, here), None

    start = x, jnp.zeros_like(x), infinite, regime(times[0])
    return jax.lax.scan(step, start, (times[:-1], times[1:]))[0][0]


Carry = tuple[Array, Array, Array, Array]
"""State of `multistep` between steps: x, and the velocity, length and regime of the step before."""
SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "multistep": multistep}
