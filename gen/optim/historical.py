"""Historical averaging (Salimans et al. 2016, section 3.3): adds w |theta - 1/t sum_i theta_i|^2 to the loss of a GAN's player.

theta are the parameters, and theta_i their values at the steps i = 1, ..., t so far.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen.core import Array, Params


class HistoricalState(NamedTuple):
    """State of historical averaging."""

    count: Array
    """int32 []. Number of steps whose parameters are in the mean."""
    mean: Params
    """Mean of the parameters over all steps so far."""


def historical_averaging(weight: float) -> optax.GradientTransformation:
    """Returns a transformation that adds the penalty's gradient, 2 w (theta - mean), to gradients. Put it before an optimizer.

    weight: w. The mean includes the current theta, and counts as a constant in the gradient.
    """

    def init(params: Params) -> HistoricalState:
        return HistoricalState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: HistoricalState, params: Params | None = None) -> tuple[Params, HistoricalState]:
        assert params is not None
        count = state.count + 1
        mean = jax.tree.map(lambda m, p: m + (p - m) / count.astype(p.dtype), state.mean, params)
        grads = jax.tree.map(lambda g, p, m: g + 2 * weight * (p - m), grads, params, mean)
        return grads, HistoricalState(count, mean)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]
