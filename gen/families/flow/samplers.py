"""Solvers of the flow's differential equation dx/dt = v(x, t), as pure functions.

A sampler moves x [B, ...] along the velocity v, from one of the `times` [steps + 1] to the next. If the times fall from 1 to 0,
it turns noise into samples. If they rise from 0 to 1, it turns examples into noise. Each sampler is a scan, so the size of the
compiled program does not depend on the number of steps.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen.core import Array

Velocity = Callable[[Array, Array, Array], Array]
"""(x [B, ...], t [], s []) -> dx/dt at the time t, for a step from t to s. A model of mean velocities (MeanFlow) returns the mean
velocity between t and s instead, if s < t."""
Regime = Callable[[Array], Array]
"""t [] -> a bool or a number, the regime. It changes where the velocity jumps as a function of t, for instance at the ends of the
interval of guidance. `multistep` does not extrapolate from one regime to another."""
Sampler = Callable[[Velocity, Array, Array, Regime], Array]
"""(velocity, x at times[0], times, regime) -> x at times[-1]."""


def no_jumps(t: Array) -> Array:
    """Returns regime 0 for all times, for a velocity without jumps."""
    return jnp.zeros_like(t)


def euler(velocity: Velocity, x: Array, times: Array, regime: Regime) -> Array:
    """Solves dx/dt = velocity with Euler's method, which uses the velocity at the beginning of each step.

    Order 1; one evaluation of the network per step. With exact mean velocities (MeanFlow), the result is exact for any
    number of steps. Returns x at times[-1], from x [B, ...] at times[0]. regime: not used.
    """

    def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = ends
        return x + (s - t) * velocity(x, t, s), None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def heun(velocity: Velocity, x: Array, times: Array, regime: Regime) -> Array:
    """Solves dx/dt = velocity with Heun's method, which uses the mean of the velocities at both ends of a step.

    Karras et al. 2022, algorithm 1. Order 2; two evaluations of the network per step. Returns x at times[-1], from
    x [B, ...] at times[0]. regime: not used.
    """

    def step(x: Array, ends: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = ends
        v = velocity(x, t, t)
        w = velocity(x + (s - t) * v, s, s)
        return x + (s - t) * (v + w) / 2, None

    return jax.lax.scan(step, x, (times[:-1], times[1:]))[0]


def multistep(velocity: Velocity, x: Array, times: Array, regime: Regime) -> Array:
    """Solves dx/dt = velocity with the two-step method of Adams and Bashforth.

    In each step, the velocity is extrapolated linearly from its values at the beginnings of the previous step and of
    this step. Order 2; one evaluation of the network per step. Steps may have different lengths. The first step is an
    Euler step. Returns x at times[-1], from x [B, ...] at times[0].

    regime: function of t whose value changes where the velocity jumps, for instance at the ends of the interval of guidance. The
    first step after a change is an Euler step too, so that nothing is extrapolated across a jump.
    """
    # If the previous step had infinite length, the slope of the extrapolation is 0, as in an Euler step.
    infinite = jnp.full((), jnp.inf, times.dtype)

    def step(carry: Carry, ends: tuple[Array, Array]) -> tuple[Carry, None]:
        x, last_v, last_h, last_regime = carry
        t, s = ends
        v, h, here = velocity(x, t, t), s - t, regime(t)
        # A line through velocities on both sides of a jump would extrapolate to a velocity that occurs on neither side.
        last_h = jnp.where(here == last_regime, last_h, infinite)
        # The step is the integral of v + (v - last_v) * (time since t) / last_h.
        return (x + h * (v + h / (2 * last_h) * (v - last_v)), v, h, here), None

    start = x, jnp.zeros_like(x), infinite, regime(times[0])
    return jax.lax.scan(step, start, (times[:-1], times[1:]))[0][0]


Carry = tuple[Array, Array, Array, Array]
"""State of `multistep` between steps: x, and the velocity, length and regime of the previous step."""
SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "multistep": multistep}
