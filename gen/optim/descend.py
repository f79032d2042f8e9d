"""One optimizer step. The only place where gradients are averaged over devices."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import optax

from gen.axis import mean
from gen.core import Array, Batch, Params


def norm(tree: Any) -> Array:
    """The Euclidean norm of all numbers of the tree: of each array the product with itself, which writes down no squares."""

    def square(x: Array) -> Array:
        axes = tuple(range(x.ndim))
        whole = jnp.promote_types(x.dtype, jnp.float32)
        return jax.lax.dot_general(x, x, ((axes, axes), ((), ())), "highest", preferred_element_type=whole)

    return jnp.sqrt(sum(map(square, jax.tree.leaves(tree)), jnp.zeros(())))


backward_hook: ContextVar[Callable[[Any], None]] = ContextVar("descending", default=lambda backward: None)
"""Is shown each backward pass that `descend` traces: a pytree of what it keeps of the forward pass (see gen.plan)."""


def descend(
    loss: Callable[[Params, Batch], tuple[Array, Any]],
    params: Params,
    opt_state: optax.OptState,
    tx: optax.GradientTransformation,
    batch: Batch,
    parts: int = 1,
) -> tuple[Params, optax.OptState, Array, Any, Params]:
    """One optimizer step on `loss(params, batch) -> (scalar, aux)`: params, opt_state, loss, aux, gradients. The only place where
    gradients are averaged: over "data", and before that over so many parts of the batch, taken one after the other."""

    def of(part: Batch) -> Any:
        value, backward, aux = jax.vjp(lambda params: loss(params, part), params, has_aux=True)
        backward_hook.get()(backward)
        return (value, aux), backward(jnp.ones_like(value))[0]

    if parts == 1:
        (value, aux), grads = of(batch)
    else:
        # Every parts-th example, so that a batch that is sharded stays where it is.
        each = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)
        shapes = jax.eval_shape(of, jax.tree.map(lambda x: x[0], each))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
        add = lambda sums, part: (jax.tree.map(jnp.add, sums, of(part)), None)
        sums, _ = jax.lax.scan(add, zeros, each)
        (value, aux), grads = jax.tree.map(lambda x, like: (x / parts).astype(like.dtype), sums, shapes)
    grads = mean(grads)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, value, aux, grads


def update_average(ema: Params, params: Params, decay: float, step: Array) -> Params:
    """The running average, one step on. It starts as the parameters are: its decay grows from 1/10 to `decay`."""
    now = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda a, p: a + ((1 - now) * (p - a)).astype(a.dtype), ema, params)
