"""Virtual batch normalization (Salimans et al. 2016, section 3.5): by a fixed reference batch, so that examples don't see
each other. No running averages, nothing to average over devices; the price is a forward pass of the references."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.core import Array

REFERENCES = 64


def virtual(x: Array, epsilon: float = 1e-5) -> Array:
    """x [B, ..., C] with the first REFERENCES examples normalized by their own moments, and each other one by the moments of
    the references and itself."""
    n, axes = REFERENCES, tuple(range(1, x.ndim - 1))

    def joined(moment: Array) -> Array:
        """Of each example, [B, 1, ..., C] -> of what it is normalized by."""
        references = moment[:n].mean(0, keepdims=True)
        own = (n * references + moment[n:]) / (n + 1)
        return jnp.concatenate([jnp.broadcast_to(references, moment[:n].shape), own])

    mean, square = joined(x.mean(axes, keepdims=True)), joined(jnp.square(x).mean(axes, keepdims=True))
    return (x - mean) * jax.lax.rsqrt(square - jnp.square(mean) + epsilon)


class Referenced(nn.Module):
    """A generator that runs with fixed reference latents, and labels in turn, in front of its own; they are dropped after."""

    generator: nn.Module

    @nn.compact
    def __call__(self, z: Array, label: Array | None, train: bool) -> Array:
        n = REFERENCES
        z = jnp.concatenate([jax.random.normal(jax.random.key(0), (n, z.shape[-1]), z.dtype), z])
        if label is not None:
            k = label.shape[-1]
            label = jnp.concatenate([jax.nn.one_hot(jnp.arange(n) % k, k, dtype=label.dtype), label])
        return self.generator(z, label, train)[n:]  # pyright: ignore[reportCallIssue]
