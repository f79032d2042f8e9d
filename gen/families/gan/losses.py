"""Adversarial losses as in their papers, and penalties on the discriminator's gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import relu, softplus

from gen import axis
from gen.core import Array

LOG_2 = 0.6931471805599453


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
    return softplus(axis.mean(fake.mean()) - real) + softplus(fake - axis.mean(real.mean()))


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
    return jnp.square(axis.mean(real.mean(0)) - axis.mean(fake.mean(0))).sum()


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
