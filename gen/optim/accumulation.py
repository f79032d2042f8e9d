"""Gradient accumulation: one update from the gradients of several steps, each weighted by how much its batch counts."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gen.core import Array, Params


class Accumulated(NamedTuple):
    """Gradients since the last update, and the state of the transformation that gets their mean."""

    steps: Array
    """int32 []. Number of gradients since the last update."""
    weight: Array
    """float32 []. Sum of their weights."""
    mean: Params
    """Their weighted mean, at least float32."""
    inner: optax.OptState


def accumulate(tx: optax.GradientTransformation, every: int) -> optax.GradientTransformationExtraArgs:
    """Returns a transformation that gives `tx` the mean gradient of each `every` steps, and updates by 0 in between.

    `update` takes `weight`, [], by default 1. It is the number of tokens (or other items) over which the step's loss is a mean. With
    these weights, the result is the gradient of the mean over the tokens of all steps.
    """

    def init(params: Params) -> Accumulated:
        # Sums are at least float32, because sums in bfloat16 would lose small gradients.
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params)
        return Accumulated(jnp.zeros((), jnp.int32), jnp.zeros(()), zeros, tx.init(params))

    def update(
        grads: Params, state: Accumulated, params: Params | None = None, *, weight: Array | float = 1.0, **_: object
    ) -> tuple[optax.Updates, Accumulated]:
        total = state.weight + jnp.asarray(weight, jnp.float32)
        # A step in which nothing counts has no gradient, so its share is irrelevant.
        share = jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), 0)
        mean = jax.tree.map(lambda m, g: m + (g - m) * share.astype(m.dtype), state.mean, grads)

        def apply() -> tuple[optax.Updates, Accumulated]:
            like = jax.tree.map(lambda m, g: m.astype(g.dtype), mean, grads)
            updates, inner = tx.update(like, state.inner, params)
            return updates, Accumulated(
                jnp.zeros((), jnp.int32), jnp.zeros(()), jax.tree.map(jnp.zeros_like, mean), inner
            )

        def wait() -> tuple[optax.Updates, Accumulated]:
            shapes, _ = jax.eval_shape(apply)
            updates = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            return updates, Accumulated(state.steps + 1, total, mean, state.inner)

        return jax.lax.cond(state.steps + 1 == every, apply, wait)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]
