"""Matrix products of dense layers that have the same input.

Plain: x @ kernel for each kernel. On a CPU, the kernels are joined to one matrix, so that values and gradients take one product each.

The gradients have their own rules, which read the factors in their order in memory. In the gradients that JAX derives, XLA would first
copy the activations to transpose them.
"""

from __future__ import annotations

from itertools import accumulate

import jax
import jax.numpy as jnp

from gen.core import Array

Kernels = tuple[Array, ...]
"""Kernels [D, F] of layers with the same input [..., D]. F may differ between the layers."""


def products(x: Array, kernels: Kernels) -> tuple[Array, ...]:
    """Returns x @ kernel, [..., F], for each kernel [D, F]: flax's nn.Dense without a bias. x: [..., D]."""
    if x.dtype not in (jnp.float32, jnp.float64):
        return tuple(x @ kernel for kernel in kernels)
    return tuple(y.reshape(*x.shape[:-1], -1) for y in _products(x.reshape(-1, x.shape[-1]), kernels))


@jax.custom_vjp
def _products(x: Array, kernels: Kernels) -> tuple[Array, ...]:
    """Computes `products` for x [B, D]: [B, F] for each kernel. Its gradient rule is `_backward`."""

    def joined(x: Array, kernels: Kernels) -> tuple[Array, ...]:
        return split(x @ join(kernels), kernels)

    def plain(x: Array, kernels: Kernels) -> tuple[Array, ...]:
        return tuple(x @ kernel for kernel in kernels)

    return jax.lax.platform_dependent(x, kernels, cpu=joined, default=plain)


def _forward(x: Array, kernels: Kernels) -> tuple[tuple[Array, ...], tuple[Array, Kernels]]:
    return _products(x, kernels), (x, kernels)


def _backward(kept: tuple[Array, Kernels], gs: tuple[Array, ...]) -> tuple[Array, Kernels]:
    """Returns (dx, dkernel for each kernel), given the gradient g [B, F] of each product.

    dx is the sum of g kernel^T over the kernels. dkernel = x^T g.
    """

    def joined(x: Array, kernels: Kernels, gs: tuple[Array, ...]) -> tuple[Array, Kernels]:
        # The sum over kernels in dx is a longer contraction, and all dkernel are columns of one product.
        g = join(gs)
        return contract(g, join(kernels), 1), split(contract(x, g, 0), kernels)

    def plain(x: Array, kernels: Kernels, gs: tuple[Array, ...]) -> tuple[Array, Kernels]:
        dx = sum((contract(g, kernel, 1) for g, kernel in zip(gs, kernels, strict=True)), jnp.zeros((), x.dtype))
        return dx, tuple(contract(x, g, 0) for g in gs)

    return jax.lax.platform_dependent(*kept, gs, cpu=joined, default=plain)


_products.defvjp(_forward, _backward)


def contract(a: Array, b: Array, axis: int) -> Array:
    """Returns a^T b for axis 0, or a b^T for axis 1, without a transposed copy of a matrix.

    axis: the axis of both matrices that is summed over.
    """
    return jax.lax.dot_general(a, b, (((axis,), (axis,)), ((), ())))


def join(xs: tuple[Array, ...]) -> Array:
    """Joins matrices [R, F], with equal R, side by side: [R, sum of F]."""
    return xs[0] if len(xs) == 1 else jnp.concatenate(xs, axis=1)


def split(y: Array, kernels: Kernels) -> tuple[Array, ...]:
    """Splits y [R, sum of F] into one part [R, F] for each kernel [D, F]: the inverse of `join`."""
    return tuple(jnp.split(y, list(accumulate(kernel.shape[1] for kernel in kernels))[:-1], axis=1))
