"""The cross-entropy of tokens."""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import logsumexp

from gen.core import Array


def cross_entropy(logits: Array, target: Array) -> tuple[Array, Array]:
    """-log softmax(logits)[target] of each token, and log Z, the normalizer whose square the z-loss is. nats.

    logits: [..., V]; target: int [...].
    """
    log_z = logsumexp(logits, axis=-1)
    return log_z - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0], log_z
