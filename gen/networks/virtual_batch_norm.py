"""Virtual batch normalization (Salimans et al. 2016, section 3.5): each example is normalized by the
mean and variance of a fixed reference batch and of itself.

Examples of a batch do not affect each other, so there are no running averages, and no means over devices. The cost is a forward pass
of the reference batch in every step.
"""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen.core import Array

REFERENCES = 64
"""Number of examples in the reference batch. The caller puts them at the front of each batch."""


def virtual_batch_norm(x: Array, epsilon: float = 1e-5) -> Array:
    """Normalizes x [B, ..., C], whose first REFERENCES examples are the references. Computes in at least float32; returns the dtype of x.

    The references are normalized by their own moments. Each other example is normalized by the moments of the references and
    of itself together.
    """
    n, axes, dtype = REFERENCES, tuple(range(1, x.ndim - 1)), x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    # The result does not depend on a constant that is subtracted first. Without it, E x^2 - (E x)^2 would lose all digits where the
    # mean is much larger than the standard deviation, and could be negative.
    x -= jax.lax.stop_gradient(x[:n].mean((0, *axes), keepdims=True))

    def combine(moment: Array) -> Array:
        """Returns the moment that normalizes each example, [B, 1, ..., C]. moment: of each example alone, same axes."""
        # The example counts once next to n references, so its weight is 1 / (n + 1).
        references = moment[:n].mean(0, keepdims=True)
        own = (n * references + moment[n:]) / (n + 1)
        return jnp.concatenate([jnp.broadcast_to(references, moment[:n].shape), own])

    mean, square = combine(x.mean(axes, keepdims=True)), combine(jnp.square(x).mean(axes, keepdims=True))
    return ((x - mean) * jax.lax.rsqrt(square - jnp.square(mean) + epsilon)).astype(dtype)


class ReferencedGenerator(nn.Module):
    """Runs a generator with virtual batch normalization: on REFERENCES fixed latents, then on the inputs, as one batch.

    The images of the fixed latents are dropped.
    """

    generator: nn.Module

    @nn.compact
    def __call__(self, z: Array, label: Array | None, train: bool) -> Array:
        """Returns images [B, H, W, C] for latents z [B, D]. label: one-hot [B, classes], or None without labels.

        The reference latents have the classes 0, 1, 2, ... in turn. train: passed on to the generator.
        """
        n = REFERENCES
        # A constant key: the reference batch must be the same in every step.
        z = jnp.concatenate([jax.random.normal(jax.random.key(0), (n, z.shape[-1]), z.dtype), z])
        if label is not None:
            k = label.shape[-1]
            label = jnp.concatenate([jax.nn.one_hot(jnp.arange(n) % k, k, dtype=label.dtype), label])
        apply: Callable[..., Array] = self.generator  # pyright: ignore[reportAssignmentType]
        return apply(z, label, train)[n:]
