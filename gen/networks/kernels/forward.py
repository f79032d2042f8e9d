"""Derivatives along a direction (forward mode) of functions that only have reverse-mode rules, such as the kernels in this folder."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen.core import Array


def jvp(function: Callable[..., Array], at: tuple[Array, ...], along: tuple[Array, ...]) -> tuple[Array, Array]:
    """Returns (value, derivative along `along`) of a function at the arguments `at`. Plain: `jax.jvp(function, at, along)`.

    The pullback of a function is linear, and its transpose is the derivative along a direction. XLA removes the unused backward
    pass, so this takes as long as `jax.jvp`. Townsend 2017, "A new trick for calculating Jacobian vector products".

    function: twice differentiable in reverse mode. at, along: one array for each argument, of equal shapes.
    """
    value, pullback = jax.vjp(function, *at)
    _, transpose = jax.vjp(pullback, jnp.zeros_like(value))
    return value, transpose(along)[0]
