"""Log-probabilities and bounds of variational autoencoders, in nats, as in their papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, logsumexp, softplus

from gen.core import Array


def bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """Returns log p(x) of each element in nats, for x in {0, 1} and p(x = 1) = sigmoid(logits)."""
    return x * logits - softplus(logits)


def continuous_bernoulli_log_prob(logits: Array, x: Array) -> Array:
    """Returns the log density of each element in nats, for x in [0, 1]. Loaiza-Ganem and Cunningham 2019, equation 6.

    With l = logits and lambda = sigmoid(l), log C = log(2 atanh(1 - 2 lambda) / (1 - 2 lambda)) = log(l / tanh(l / 2)).
    """
    # log C is 0 / 0 at l = 0, so its series replaces it near 0. The inner `where` keeps NaN out of the gradient.
    near = jnp.abs(logits) < 1e-2
    l = jnp.where(near, 1.0, logits)
    log_c = jnp.where(near, jnp.log(2.0) + logits**2 / 12, jnp.log(l / jnp.tanh(l / 2)))
    return x * logits - softplus(logits) + log_c


def discretized_logistic_log_prob(mean: Array, log_scale: Array, x: Array, levels: int) -> Array:
    """Returns the log probability of each element of x in nats. Arrays broadcast. Kingma et al. 2016, appendix C.

    The probability of a value is the mass of a logistic distribution in the cell around it.

    mean, log_scale: of the logistic distribution. x: `levels` equally spaced values from -1 to 1. The cells of -1 and of 1
    extend to infinity.
    """
    half = 1.0 / (levels - 1)
    inverse = jnp.exp(-log_scale)
    above, below = (x + half - mean) * inverse, (x - half - mean) * inverse
    # log(sigmoid(a) - sigmoid(b)) = log sigmoid(a) + log sigmoid(-b) + log(1 - exp(b - a))
    # width = a - b underflows if the scale is wide. The series 1 - exp(-w) = w (1 - w / 2) replaces it there.
    width = 2 * half * inverse
    wide = width < 1e-3
    log_width = jnp.log(2 * half) - log_scale - width / 2
    inside = log_sigmoid(above) + log_sigmoid(-below)
    inside += jnp.where(wide, log_width, jnp.log(-jnp.expm1(-jnp.where(wide, 1.0, width))))
    return jnp.where(x < -1 + half, log_sigmoid(above), jnp.where(x > 1 - half, log_sigmoid(-below), inside))


def free_bits(kl: Array, average: Array, floor: float) -> Array:
    """Returns the KL [B, D] of each latent dimension, replaced by `floor` nats where its average is not above `floor`.

    So the loss does not push the average KL of a dimension below `floor`. For each dimension, the mean of the result
    over the global batch is max(floor, average). Kingma et al. 2016, equation 15.

    kl: KL of this device's examples, [B, D]. average: [D], the mean of kl over the global batch.
    """
    # The average only decides where the floor applies. The gradient comes from this device's kl.
    return jnp.where(jax.lax.stop_gradient(average) > floor, kl, floor)


def importance_weighted_bound(log_w: Array) -> Array:
    """Returns log(1/K sum_k w_k) in nats, [...], from log_w [K, ...]. Burda et al. 2016, equation 8."""
    return logsumexp(log_w, axis=0) - jnp.log(jnp.asarray(log_w.shape[0], log_w.dtype))


def doubly_reparameterized(log_weight: Callable[[Sequence[Array]], Array], z: Sequence[Array]) -> tuple[Array, Array]:
    """Returns the importance-weighted bound [B] in nats, and a surrogate [B]. Tucker et al. 2019, equation 8.

    The surrogate is for training: its gradient is the doubly reparameterized gradient of the bound. Its value has no
    meaning. The bound has no gradient. With v_k the weights w_k divided by their sum, the surrogate's gradients are:
        Decoder and prior (theta): sum_k v_k d log w_k / dtheta.
        Encoder (phi):             sum_k v_k^2 d log w_k / dz_k  dz_k/dphi.

    log_weight: z -> log w [K, B]. In it, the mean and the standard deviation of q must be constants, without gradient.
    z: a sample of q that is differentiable in phi, [K, B, D] for each group.
    """
    # log w is differentiated at a fixed z. Then its gradient with respect to z flows along dz/dphi, weighted by v^2 instead of v.
    fixed = [jax.lax.stop_gradient(x) for x in z]
    log_w, pullback = jax.vjp(log_weight, fixed)
    v = jax.lax.stop_gradient(jax.nn.softmax(log_w, axis=0))
    (g,) = pullback(v**2)
    path = sum(jnp.sum(jax.lax.stop_gradient(gz) * x, axis=(0, -1)) for gz, x in zip(g, z, strict=True))
    surrogate = jnp.sum(v * log_w, axis=0) + path
    return jax.lax.stop_gradient(importance_weighted_bound(log_w)), surrogate
