"""Gradient accumulation: one update from the gradients of several steps, each weighted by how much its batch counts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen.core import Array, Params


class Accumulated(NamedTuple):
    """State of `accumulate`: the gradients since the last update, as their mean."""

    steps: Array
    """int32 []. Number of gradients since the last update."""
    weight: Array
    """float32 []. Sum of the weights of these gradients."""
    mean: Params
    """Weighted mean of these gradients, at least float32."""
    inner: optax.OptState
    """State of the transformation that gets the mean."""


def accumulate(tx: optax.GradientTransformation, every: int) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that applies `tx` to the mean gradient of every `every` steps. Other steps get updates of 0.

    Its `update` takes the keyword `weight`, a scalar, by default 1: the number of tokens (or other items) over which the loss of
    the step is a mean. With these weights, the mean gradient is the gradient of the mean loss over the tokens of all steps.
    """

    def init(params: Params) -> Accumulated:
        # Sums are at least float32, because sums in bfloat16 would lose small gradients.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params)
        return Accumulated(jnp.zeros((), jnp.int32), jnp.zeros(()), zeros, tx.init(params))

    def update(
        grads: Params, state: Accumulated, params: Params | None = None, *, weight: Array | float = 1.0, **_: object
    ) -> tuple[optax.Updates, Accumulated]:
        total = state.weight + jnp.asarray(weight, jnp.float32)
        # If no token has counted so far, the gradients are 0, so any `share` is right. Only a division by 0 is avoided.
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)
        mean = jax.tree.map(lambda m, g: m + (g - m) * share.astype(m.dtype), state.mean, grads)

        def apply() -> tuple[optax.Updates, Accumulated]:
            like = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, grads)
            updates, inner = tx.update(like, state.inner, params)
            return updates, Accumulated(
                jnp.zeros((), jnp.int32), jnp.zeros(()), jax.tree.map(jnp.zeros_like, mean), inner
            )

        def wait() -> tuple[optax.Updates, Accumulated]:
            # Both branches of `cond` must have the same shapes and dtypes.
            shapes, _ = jax.eval_shape(apply)
            updates = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return updates, Accumulated(state.steps + 1, total, mean, state.inner)

        return jax.lax.cond(state.steps + 1 == every, apply, wait)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
