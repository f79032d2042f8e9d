"""The cross-entropy of tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.nn import logsumexp

from gen.core import Array


def cross_entropy(logits: Array, target: Array) -> tuple[Array, Array]:
    """Returns (-log softmax(logits)[target], log Z) for each token, in nats.

    log Z = log sum_v exp(logits_v) is the normalizer that the z-loss keeps near 0.

    logits: [..., V]; target: int [...]. Both results: [...].
    """
    log_z = logsumexp(logits, axis=-1)
    return log_z - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0], log_z


def with_z_loss(nats: Array, log_z: Array, z_loss: float) -> Array:
    """Returns the nats [...], with the gradient of nats + z_loss log(Z)^2.

    The value stays the likelihood alone, so that training and held-out losses can be compared. log_z: [...], see `cross_entropy`.
    """
    z = z_loss * jnp.square(log_z)
    # z - z is exactly 0, so the nats keep their last bit.
    return nats + (z - jax.lax.stop_gradient(z))
