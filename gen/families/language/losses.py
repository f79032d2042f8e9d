"""The cross-entropy of tokens."""

from __future__ import annotations

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
