"""Likelihoods and bounds of variational autoencoders, in nats, as in their papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, logsumexp, softplus

from gen.core import Array


def bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """log p(x) of each element for x in {0, 1}. nats."""
    return x * logits - softplus(logits)


def continuous_bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """log density of each element for x in [0, 1]. nats. Loaiza-Ganem and Cunningham 2019, equation 6.

    With lambda = sigmoid(logits), log C = log(2 atanh(1 - 2 lambda) / (1 - 2 lambda)) = log(l / tanh(l / 2)), l = logits.
    """
    near = jnp.abs(logits) < 1e-2
    l = jnp.where(near, 1.0, logits)
    log_c = jnp.where(near, jnp.log(2.0) + logits**2 / 12, jnp.log(l / jnp.tanh(l / 2)))
    return x * logits - softplus(logits) + log_c


def discretized_logistic_log_prob(mean: Array, log_scale: Array, x: Array, levels: int) -> Array:
    """log mass of each element of x, one of `levels` equally spaced values in [-1, 1]. nats.

    Kingma et al. 2016, appendix C; the two ends take what lies beyond them. Broadcasts.
    """
    half = 1.0 / (levels - 1)
    inverse = jnp.exp(-log_scale)
    above, below = (x + half - mean) * inverse, (x - half - mean) * inverse
    # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))
    width = 2 * half * inverse  # a - b, which underflows where the scale is wide: 1 - exp(-w) is w (1 - w / 2) there
    wide = width < 1e-3
    log_width = jnp.log(2 * half) - log_scale - width / 2
    inside = log_sigmoid(above) + log_sigmoid(-below)
    inside += jnp.where(wide, log_width, jnp.log(-jnp.expm1(-jnp.where(wide, 1.0, width))))
    return jnp.where(x < -1 + half, log_sigmoid(above), jnp.where(x > 1 - half, log_sigmoid(-below), inside))


def free_bits(kl: Array, average: Array, floor: float) -> Array:
    """KL of each latent, not pressed below `floor` nats on average. Kingma et al. 2016, equation 15.

    kl: [B, D]; average: [D], over the whole batch. The gradient is that of max(floor, average).
    """
    return jnp.where(jax.lax.stop_gradient(average) > floor, kl, floor)


def importance_weighted_bound(log_w: Array) -> Array:
    """log 1/K sum_k w_k over the first axis, [K, ...] -> [...]. nats. Burda et al. 2016, equation 8."""
    return logsumexp(log_w, axis=0) - jnp.log(jnp.asarray(log_w.shape[0], log_w.dtype))


def doubly_reparameterized(log_weight: Callable[[Sequence[Array]], Array], z: Sequence[Array]) -> tuple[Array, Array]:
    """The importance-weighted bound, and a number with its gradient by Tucker et al. 2019, equation 8.

    log_weight: z -> log w, [K, B], in which the parameters of q are constant; z: a sample of q, differentiable.
    Model:   sum_k v_k d/dtheta log w_k, with v the normalized weights.
    Encoder: sum_k v_k^2 d log w_k / dz_k  dz_k/dphi.
    """
    fixed = [jax.lax.stop_gradient(x) for x in z]
    log_w, pullback = jax.vjp(lambda x: log_weight(x), fixed)
    v = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=0))
    (g,) = pullback(v**2)
    path = sum(jnp.sum(jax.lax.stop_gradient(gz) * x, axis=(0, -1)) for gz, x in zip(g, z, strict=True))
    surrogate = jnp.sum(v * log_w, axis=0) + path
    return jax.lax.stop_gradient(importance_weighted_bound(log_w)), surrogate
