"""Derivatives along a direction (forward mode) of functions that only have reverse-mode rules, such as the kernels in this folder."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen.core import Array


def jvp(function: Callable[..., Array], at: tuple[Array, ...], along: tuple[Array, ...]) -> tuple[Array, Array]:
    """Returns (value, derivative in the direction `along`) of a function at the arguments `at`.

    The same as `jax.jvp(function, at, along)`, but also for functions with a jax.custom_vjp, which jax.jvp refuses. The
    pullback of a function is linear, and its transpose is the derivative along a direction. XLA removes the unused
    backward pass, so this takes as long as `jax.jvp`. Townsend 2017, "A new trick for calculating Jacobian vector
    products".

    function: twice differentiable in reverse mode. at, along: one array for each argument, of equal shapes.
    """
    value, pullback = jax.vjp(function, *at)
    # The pullback is linear, so its derivative is the same at every point, and zeros will do.
    _, transpose = jax.vjp(pullback, jnp.zeros_like(value))
    return value, transpose(along)[0]
