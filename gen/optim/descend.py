"""One optimizer step. The only place where gradients are averaged over devices."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax

from gen import axis
from gen.core import Array, Params
from gen.networks.dtypes import widen

Aux = TypeVar("Aux")
Examples = TypeVar("Examples")
"""A pytree of arrays [B, ...], such as a Batch."""


def norm(tree: Params) -> Array:
    """Returns the Euclidean norm of all numbers of the tree, [], at least float32."""

    def square(x: Array) -> Array:
        # A product of the array with itself, and not a sum of squares, so that the squares are never written to memory.
        axes = tuple(range(x.ndim))
        whole = jnp.promote_types(x.dtype, jnp.float32)
        return jax.lax.dot_general(x, x, ((axes, axes), ((), ())), "highest", preferred_element_type=whole)

    return jnp.sqrt(sum(map(square, jax.tree.leaves(tree)), jnp.zeros(())))


def _ignore(backward: object) -> None:
    pass


backward_hook: ContextVar[Callable[[object], None]] = ContextVar("backward_hook", default=_ignore)
"""Function that `descend` calls with each backward pass that it traces: a pytree of the values kept from the forward pass. gen.plan
sets it to count their bytes. By default it does nothing."""


class Descent(NamedTuple, Generic[Aux]):
    """Result of one optimizer step."""

    params: Params
    """The parameters after the step."""
    opt_state: optax.OptState
    """The optimizer's state after the step."""
    loss: Array
    """The loss before the step, [], on this device's examples alone."""
    aux: Aux
    """The second result of the loss function, such as metrics, on this device's examples alone."""
    grads: Params
    """The gradient, averaged over "data"."""


def descend(
    loss: Callable[[Params, Examples], tuple[Array, Aux]],
    params: Params,
    opt_state: optax.OptState,
    tx: optax.GradientTransformation,
    batch: Examples,
    microbatches: int = 1,
    weight: Array | None = None,
) -> Descent[Aux]:
    """Does one optimizer step. The gradient is first averaged over the axis "data", so all devices make the same step.

    loss: (params, examples) -> (scalar, aux). Both are means over the examples.
    batch: this device's examples, a pytree of arrays [B, ...].
    microbatches: number of parts of the batch whose gradients are computed one after the other and averaged. It must divide B.
    weight: [], weight of this step's gradient if `tx` accumulates several steps (gen.optim.accumulation). None: all count equally.
    """

    def differentiate(part: Examples) -> tuple[tuple[Array, Aux], Params]:
        # `jax.vjp` and not `jax.value_and_grad`, because `backward_hook` reads what the backward pass keeps.
        value, backward, aux = jax.vjp(lambda params: loss(params, part), params, has_aux=True)
        backward_hook.get()(backward)
        return (value, aux), backward(jnp.ones_like(value))[0]

    if microbatches == 1:
        (value, aux), grads = differentiate(batch)
    else:
        (value, aux), grads = _average_parts(differentiate, batch, microbatches)
    grads = axis.mean(grads)
    # An optimizer that does not accumulate ignores the weight (with_extra_args_support).
    extra = {} if weight is None else {"weight": weight}
    updates, opt_state = optax.with_extra_args_support(tx).update(grads, opt_state, params, **extra)
    return Descent(optax.apply_updates(params, updates), opt_state, value, aux, grads)


def _average_parts(
    differentiate: Callable[[Examples], tuple[tuple[Array, Aux], Params]], batch: Examples, parts: int
) -> tuple[tuple[Array, Aux], Params]:
    """Returns the mean of `differentiate` over parts of the batch. Only one part's activations are in memory at a time."""

    def split(x: Array) -> Array:
        # Part i has the examples i, i + parts, ...: neighbours stay on their device when the batch is sharded.
        return jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)

    def add(sums: Params, part: Examples) -> tuple[Params, None]:
        return jax.tree.map(jnp.add, sums, differentiate(part)), None

    each = jax.tree.map(split, batch)
    shapes = jax.eval_shape(differentiate, jax.tree.map(lambda x: x[0], each))
    # Sums are at least float32, because sums in bfloat16 would lose small gradients.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), shapes)
    sums, _ = jax.lax.scan(add, zeros, each)
    return jax.tree.map(lambda x, like: (x / parts).astype(like.dtype), sums, shapes)


def at_least_float32(tree: Params) -> Params:
    """Returns the tree with all arrays as float32. Arrays of float64 are unchanged.

    A moving average in bfloat16 would not move: bfloat16 has 8 bits of precision, and with a decay of 0.99 a step changes
    an average by less than its last bit.
    """
    return jax.tree.map(widen, tree)


def begin_average(params: Params) -> Params:
    """Returns the moving average of the parameters at step 0: the parameters themselves, at least float32."""
    return at_least_float32(params)


def update_average(ema: Params, params: Params, decay: float, step: Array) -> Params:
    """Returns the moving average of the parameters after one more step, at least float32.

    ema: the average before this step. step: int32 [], number of steps done before this one. The average moves to
    d * ema + (1 - d) * params with d = min(decay, (1 + step) / (10 + step)). This decay grows from 1/10 to `decay`, so the average
    soon forgets the initial values.
    """
    now = jnp.minimum(decay, (1 + step) / (10 + step))

    def move(a: Array, p: Array) -> Array:
        return a + ((1 - now) * (p.astype(a.dtype) - a)).astype(a.dtype)

    return jax.tree.map(move, at_least_float32(ema), params)
