"""Derivatives along a direction, of functions that have reverse-mode rules only, as the kernels of this folder have."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from gen.core import Array


def jvp(function: Callable[..., Array], at: tuple[Array, ...], along: tuple[Array, ...]) -> tuple[Array, Array]:
    """Returns the function's value at `at`, and its derivative along `along`. Plain: `jax.jvp(function, at, along)`.

    The pullback of a function is linear, and its transpose is the derivative. Nothing is computed backwards: the transpose
    takes as long as `jax.jvp`. Townsend 2017, "A new trick for calculating Jacobian vector products".

    function: differentiable twice in reverse mode.
    """
    value, pullback = jax.vjp(function, *at)
    _, transpose = jax.vjp(pullback, jnp.zeros_like(value))
    return value, transpose(along)[0]
