"""Cross-entropy of tokens, with and without the z-loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from gen.core import Array


def cross_entropy(logits: Array, target: Array) -> tuple[Array, Array]:
    """Returns (-log softmax(logits)[target], log Z) for each token, in nats.

    log Z = log sum_v exp(logits_v) is the log of the softmax's normalizer. The z-loss keeps it near 0.

    logits: [..., V]; target: int [...]. Both results: [...].
    """
    log_z = logsumexp(logits, axis=-1)
    return log_z - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0], log_z


def with_z_loss(nats: Array, log_z: Array, z_loss: float) -> Array:
    """Returns the nats [...] unchanged, but with the gradient of nats + z_loss log(Z)^2.

    So the value is -log p alone, and training and held-out losses can be compared.

    nats, log_z: [...], from `cross_entropy`. z_loss: weight of the term.
    """
    z = z_loss * jnp.square(log_z)
    # z - z is exactly 0, so the nats do not change by a single bit.
    return nats + (z - jax.lax.stop_gradient(z))
