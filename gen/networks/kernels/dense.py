"""Products of dense layers. On a CPU, those of one input are one product, and so are their gradients, each contracted as its
factors lie: of what JAX derives from the plain form, XLA transposes the activations in memory first.
"""

from __future__ import annotations

from itertools import accumulate

import jax
import jax.numpy as jnp

from gen.core import Array

Kernels = tuple[Array, ...]


def products(x: Array, kernels: Kernels) -> tuple[Array, ...]:
    """[..., D], of each kernel [D, F] -> [..., F], each as flax's nn.Dense has it without its bias."""
    if x.dtype not in (jnp.float32, jnp.float64):
        return tuple(x @ kernel for kernel in kernels)
    return tuple(y.reshape(*x.shape[:-1], -1) for y in of_rows(x.reshape(-1, x.shape[-1]), kernels))


@jax.custom_vjp
def of_rows(x: Array, kernels: Kernels) -> tuple[Array, ...]:
    """[B, D], of each kernel [D, F] -> [B, F]."""
    joined = lambda x, kernels: split(x @ join(kernels), kernels)
    apart = lambda x, kernels: tuple(x @ kernel for kernel in kernels)
    return jax.lax.platform_dependent(x, kernels, cpu=joined, default=apart)


def gradients(residuals: tuple[Array, Kernels], gs: tuple[Array, ...]) -> tuple[Array, Kernels]:
    """Of x, g k^T; of each kernel, x^T g."""

    def joined(x: Array, kernels: Kernels, gs: tuple[Array, ...]) -> tuple[Array, Kernels]:
        g = join(gs)
        return contract(g, join(kernels), 1), split(contract(x, g, 0), kernels)

    def apart(x: Array, kernels: Kernels, gs: tuple[Array, ...]) -> tuple[Array, Kernels]:
        dx = sum((contract(g, kernel, 1) for g, kernel in zip(gs, kernels, strict=True)), jnp.zeros((), x.dtype))
        return dx, tuple(contract(x, g, 0) for g in gs)

    return jax.lax.platform_dependent(*residuals, gs, cpu=joined, default=apart)


of_rows.defvjp(lambda x, kernels: (of_rows(x, kernels), (x, kernels)), gradients)


def contract(a: Array, b: Array, axis: int) -> Array:
    return jax.lax.dot_general(a, b, (((axis,), (axis,)), ((), ())))


def join(xs: tuple[Array, ...]) -> Array:
    return xs[0] if len(xs) == 1 else jnp.concatenate(xs, axis=1)


def split(y: Array, kernels: Kernels) -> tuple[Array, ...]:
    return tuple(jnp.split(y, list(accumulate(kernel.shape[1] for kernel in kernels))[:-1], axis=1))
