"""Historical averaging (Salimans et al. 2016, section 3.3): a player's cost has w |theta - 1/t sum_i theta_i|^2 added."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen.core import Array, Params


class HistoricalState(NamedTuple):
    count: Array
    """int32[]: parameters seen."""
    mean: Params
    """Their mean."""


def historical_averaging(weight: float) -> optax.GradientTransformation:
    """Adds the penalty's gradient, 2 w (theta - mean), in front of an optimizer. The mean counts the present theta."""

    def init(params: Params) -> HistoricalState:
        return HistoricalState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: HistoricalState, params: Params | None = None) -> tuple[Params, HistoricalState]:
        assert params is not None
        count = state.count + 1
        mean = jax.tree.map(lambda m, p: m + (p - m) / count.astype(p.dtype), state.mean, params)
        grads = jax.tree.map(lambda g, p, m: g + 2 * weight * (p - m), grads, params, mean)
        return grads, HistoricalState(count, mean)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
