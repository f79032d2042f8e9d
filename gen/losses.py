"""Objectives as in their papers: arrays in, one number per example out (likelihoods in nats)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import log_sigmoid, logsumexp, relu, softplus

from gen import core
from gen.core import Array

LOG_2, LOG_2PI = 0.6931471805599453, 1.8378770664093453


class Gaussian(NamedTuple):
    """A diagonal Gaussian: mean and log standard deviation, [..., D]."""

    mean: Array
    log_std: Array

    def sample(self, noise: Array) -> Array:
        """mean + std * noise, for standard normal noise (Kingma and Welling 2014, section 2.4)."""
        return self.mean + jnp.exp(self.log_std) * noise


def gaussian_log_prob(x: Array, q: Gaussian) -> Array:
    """log N(x; mean, std^2) of each dimension, [..., D]. nats."""
    return -0.5 * (LOG_2PI + jnp.square((x - q.mean) * jnp.exp(-q.log_std))) - q.log_std


def gaussian_kl(q: Gaussian, p: Gaussian) -> Array:
    """KL(q || p) of each dimension, [..., D]. nats. Kingma and Welling 2014, appendix B, for a general p."""
    ratio = 2 * (q.log_std - p.log_std)
    return 0.5 * (jnp.exp(ratio) + jnp.square((q.mean - p.mean) * jnp.exp(-p.log_std)) - 1 - ratio)


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


# --- tokens ----------------------------------------------------------------------------------------------------------


def cross_entropy(logits: Array, target: Array) -> tuple[Array, Array]:
    """-log softmax(logits)[target] of each token, and log Z, the normalizer whose square the z-loss is. nats.

    logits: [..., V]; target: int [...].
    """
    log_z = logsumexp(logits, axis=-1)
    return log_z - jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0], log_z


# --- adversarial: D(x) is a score (a logit where a probability is meant), real = D(x), fake = D(G(z)), [B] each ----------


class Adversarial(NamedTuple):
    """The two players' losses, [B] each."""

    discriminator: Callable[..., Array]
    """(real, fake, target) -> what D descends; target: D's probability or score for a real one, 1 unless smoothed."""
    generator: Callable[[Array, Array], Array]
    """(real, fake) -> what G descends."""
    indifferent: float
    """D's loss where all scores are 0."""
    smooth: bool = False
    """Whether the real target can be below 1 (one-sided label smoothing, Salimans et al. 2016, section 3.4)."""
    least: Callable[[float], float] = lambda target: 0.0
    """target -> what is left of D's loss where D is perfect."""
    shift: bool = True
    """Whether adding a number to all scores changes the losses; if not, D's last bias is useless."""


def logistic_discriminator(real: Array, fake: Array, target: float = 1.0) -> Array:
    """-t log D(x) - (1 - t) log(1 - D(x)) - log(1 - D(G(z))). Goodfellow et al. 2014, equation 1, with the target t."""
    return softplus(-real) + (1 - target) * real + softplus(fake)


def logistic_least(target: float) -> float:
    """The entropy of the target: -t log t - (1 - t) log(1 - t)."""
    return -sum(t * math.log(t) for t in (target, 1 - target) if t > 0)


def minimax_generator(real: Array, fake: Array) -> Array:
    """log(1 - D(G(z))). Goodfellow et al. 2014, equation 1."""
    return -softplus(fake)


def non_saturating_generator(real: Array, fake: Array) -> Array:
    """-log D(G(z)). Goodfellow et al. 2014, section 3."""
    return softplus(-fake)


def least_squares_discriminator(real: Array, fake: Array, target: float = 1.0) -> Array:
    """(D(x) - t)^2 / 2 + D(G(z))^2 / 2. Mao et al. 2017, equation 9."""
    return (jnp.square(real - target) + jnp.square(fake)) / 2


def least_squares_generator(real: Array, fake: Array) -> Array:
    """(D(G(z)) - 1)^2 / 2. Mao et al. 2017, equation 9."""
    return jnp.square(fake - 1) / 2


def wasserstein_discriminator(real: Array, fake: Array, target: float = 1.0) -> Array:
    """D(G(z)) - D(x). Arjovsky et al. 2017, algorithm 1."""
    return fake - real


def wasserstein_generator(real: Array, fake: Array) -> Array:
    """-D(G(z)). Arjovsky et al. 2017, algorithm 1."""
    return -fake


def hinge_discriminator(real: Array, fake: Array, target: float = 1.0) -> Array:
    """max(0, 1 - D(x)) + max(0, 1 + D(G(z))). Miyato et al. 2018, equation 16."""
    return relu(1 - real) + relu(1 + fake)


def paired_discriminator(real: Array, fake: Array, target: float = 1.0) -> Array:
    """-log sigmoid(D(x) - D(G(z))). Jolicoeur-Martineau 2019, section 4; with R1 and R2 it is R3GAN (Huang et al. 2024)."""
    return softplus(fake - real)


def paired_generator(real: Array, fake: Array) -> Array:
    """-log sigmoid(D(G(z)) - D(x)). Jolicoeur-Martineau 2019, section 4."""
    return softplus(real - fake)


def average_discriminator(real: Array, fake: Array, target: float = 1.0) -> Array:
    """-log sigmoid(D(x) - E D(G(z))) - log(1 - sigmoid(D(G(z)) - E D(x))), the means over the whole batch.
    Jolicoeur-Martineau 2019, section 4.2."""
    return softplus(core.mean(fake.mean()) - real) + softplus(fake - core.mean(real.mean()))


def average_generator(real: Array, fake: Array) -> Array:
    """-log sigmoid(D(G(z)) - E D(x)) - log(1 - sigmoid(D(x) - E D(G(z)))). Jolicoeur-Martineau 2019, section 4.2."""
    return average_discriminator(fake, real)


ADVERSARIAL = {
    "minimax": Adversarial(logistic_discriminator, minimax_generator, 2 * LOG_2, smooth=True, least=logistic_least),
    "non_saturating": Adversarial(
        logistic_discriminator, non_saturating_generator, 2 * LOG_2, smooth=True, least=logistic_least
    ),
    "least_squares": Adversarial(least_squares_discriminator, least_squares_generator, 0.5, smooth=True),
    "wasserstein": Adversarial(wasserstein_discriminator, wasserstein_generator, 0.0, shift=False),
    "hinge": Adversarial(hinge_discriminator, wasserstein_generator, 2.0),
    "relativistic": Adversarial(paired_discriminator, paired_generator, LOG_2, shift=False),
    "relativistic_average": Adversarial(average_discriminator, average_generator, 2 * LOG_2, shift=False),
}


def feature_matching(real: Array, fake: Array) -> Array:
    """|E f(x) - E f(G(z))|^2 of features [B, F], the means over the whole batch. Salimans et al. 2016, section 3.1."""
    return jnp.square(core.mean(real.mean(0)) - core.mean(fake.mean(0))).sum()


def squared_gradient(critic: Callable[[Array], Array], x: Array) -> Array:
    """|grad_x D(x)|^2 of each score, [N]: R1 at real images, R2 at generated ones (Mescheder et al. 2018).

    critic: [B, ...] -> scores [N], each of B / N images in a row (more than one where they are packed).
    """
    gradient, scores = jax.grad(lambda x: (lambda s: (s.sum(), s))(critic(x)), has_aux=True)(x)
    return jnp.square(gradient).reshape(scores.shape[0], -1).sum(-1)


def gradient_penalty(critic: Callable[[Array], Array], x: Array, one_sided: bool) -> Array:
    """(|grad_x D(x)| - 1)^2 at points x between real and generated images, [N]. Gulrajani et al. 2017, equation 3.

    One-sided, only norms above 1 are penalized (there section 4; Petzka et al. 2018).
    """
    norm = jnp.sqrt(squared_gradient(critic, x) + 1e-12)
    return jnp.square(relu(norm - 1) if one_sided else norm - 1)
