"""Adversarial losses, as in their papers. Each is an `Objective`; write a subclass to add one.

D(x) is a score (a logit), not a probability: a high score says that an image is real. Each loss takes the scores of real and
of generated images, [B] each, and returns one value per pair, [B]. Both players minimize their loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax.numpy as jnp
from jax.nn import relu, softplus

from gen import axis
from gen.core import Array
from gen.errors import check_decay

LOG_2 = 0.6931471805599453


@dataclass(frozen=True)
class Objective:
    """A pair of losses: for the discriminator D and for the generator G. A config names one: `objective=Hinge()`.

    To add an objective, subclass this and define `discriminator` and `generator`. Set the class variables if their defaults
    are wrong for your losses.
    """

    loss_at_zero: ClassVar[float] = 0.0
    """D's loss if all scores are 0, so that D can't tell real from generated. The metric "saturation" is the fraction of
    held-out examples whose loss exceeds `min_loss` by less than 1% of this value. 0: the loss has no minimum, and the metric
    is not reported."""
    shift_invariant: ClassVar[bool] = False
    """Whether the losses stay the same if one number is added to all scores. D's last layer then has no bias, and ADA, which
    reads the signs of the scores, is refused."""
    couples: ClassVar[bool] = False
    """Whether the loss of an example depends on other examples of the batch. If it does, microbatches are refused."""

    @property
    def min_loss(self) -> float:
        """Lower bound of D's loss, which a perfect D approaches. It has no meaning if `loss_at_zero` is 0."""
        return 0.0

    def discriminator(self, real: Array, fake: Array) -> Array:
        """Returns D's loss [B] from its scores [B] of real and of generated images."""
        raise NotImplementedError

    def generator(self, real: Array, fake: Array) -> Array:
        """Returns G's loss [B] from D's scores [B] of real and of generated images."""
        raise NotImplementedError


@dataclass(frozen=True)
class Smoothed(Objective):
    """Base class of objectives in which D's output for real images has a target, 1 without label smoothing."""

    smoothing: float = 0.0
    """One-sided label smoothing, in [0, 1): D's target for real images is 1 - smoothing (Salimans et al. 2016, section 3.4).
    The target for generated images stays 0."""

    def __post_init__(self):
        check_decay(smoothing=self.smoothing)

    @property
    def target(self) -> float:
        """D's target for real images: a probability for logistic losses, a score for least squares."""
        return 1 - self.smoothing


@dataclass(frozen=True)
class Minimax(Smoothed):
    """The minimax game. Goodfellow et al. 2014, equation 1."""

    loss_at_zero: ClassVar[float] = 2 * LOG_2

    @property
    def min_loss(self) -> float:
        """Lower bound of D's loss: the entropy of the target t, -t log t - (1 - t) log(1 - t)."""
        # The cross-entropy with a target cannot fall below the entropy of the target.
        return -sum(t * math.log(t) for t in (self.target, 1 - self.target) if t > 0)

    def discriminator(self, real: Array, fake: Array) -> Array:
        """-t log sigmoid(D(x)) - (1 - t) log(1 - sigmoid(D(x))) - log(1 - sigmoid(D(G(z)))), with the target t."""
        # softplus(s) is -log(1 - sigmoid(s)), and softplus(-s) is -log sigmoid(s) = softplus(s) - s. Neither overflows.
        return softplus(-real) + (1 - self.target) * real + softplus(fake)

    def generator(self, real: Array, fake: Array) -> Array:
        """log(1 - sigmoid(D(G(z))))."""
        return -softplus(fake)


@dataclass(frozen=True)
class NonSaturating(Minimax):
    """Minimax with another loss of G, whose gradient does not vanish while D recognizes all generated images.

    Goodfellow et al. 2014, section 3.
    """

    def generator(self, real: Array, fake: Array) -> Array:
        """-log sigmoid(D(G(z)))."""
        return softplus(-fake)


@dataclass(frozen=True)
class LeastSquares(Smoothed):
    """LSGAN. Mao et al. 2017, equation 9."""

    loss_at_zero: ClassVar[float] = 0.5

    def discriminator(self, real: Array, fake: Array) -> Array:
        """(D(x) - t)^2 / 2 + D(G(z))^2 / 2, with the target t = 1 - smoothing."""
        return (jnp.square(real - self.target) + jnp.square(fake)) / 2

    def generator(self, real: Array, fake: Array) -> Array:
        """(D(G(z)) - 1)^2 / 2."""
        # Smoothing is one-sided: it changes only D's target for real images.
        return jnp.square(fake - 1) / 2


@dataclass(frozen=True)
class Wasserstein(Objective):
    """WGAN. Arjovsky et al. 2017, algorithm 1. D must be nearly 1-Lipschitz, for instance by `gradient_penalty`."""

    shift_invariant: ClassVar[bool] = True

    def discriminator(self, real: Array, fake: Array) -> Array:
        """D(G(z)) - D(x)."""
        return fake - real

    def generator(self, real: Array, fake: Array) -> Array:
        """-D(G(z))."""
        return -fake


@dataclass(frozen=True)
class Hinge(Objective):
    """The hinge loss. Miyato et al. 2018, equations 16 and 17."""

    loss_at_zero: ClassVar[float] = 2.0

    def discriminator(self, real: Array, fake: Array) -> Array:
        """max(0, 1 - D(x)) + max(0, 1 + D(G(z)))."""
        return relu(1 - real) + relu(1 + fake)

    def generator(self, real: Array, fake: Array) -> Array:
        """-D(G(z))."""
        return -fake


@dataclass(frozen=True)
class Relativistic(Objective):
    """Compares the score of each real image with the score of one generated image. Jolicoeur-Martineau 2019, section 4.

    With R1 and R2 it is the objective of R3GAN (Huang et al. 2024).
    """

    loss_at_zero: ClassVar[float] = LOG_2
    shift_invariant: ClassVar[bool] = True

    def discriminator(self, real: Array, fake: Array) -> Array:
        """-log sigmoid(D(x) - D(G(z)))."""
        return softplus(fake - real)

    def generator(self, real: Array, fake: Array) -> Array:
        """-log sigmoid(D(G(z)) - D(x))."""
        return softplus(real - fake)


@dataclass(frozen=True)
class RelativisticAverage(Objective):
    """Compares each score with the mean score of the other kind (real or generated) over the global batch.

    Jolicoeur-Martineau 2019, section 4.2.

    Its methods must run under the mapped axis "data" (see gen.axis).
    """

    loss_at_zero: ClassVar[float] = 2 * LOG_2
    shift_invariant: ClassVar[bool] = True
    couples: ClassVar[bool] = True

    def discriminator(self, real: Array, fake: Array) -> Array:
        """-log sigmoid(D(x) - E D(G(z))) - log(1 - sigmoid(D(G(z)) - E D(x)))."""
        # axis.mean averages over devices, so the means do not depend on the number of devices.
        return softplus(axis.mean(fake.mean()) - real) + softplus(fake - axis.mean(real.mean()))

    def generator(self, real: Array, fake: Array) -> Array:
        """-log sigmoid(D(G(z)) - E D(x)) - log(1 - sigmoid(D(x) - E D(G(z))))."""
        return self.discriminator(fake, real)


def feature_matching(real: Array, fake: Array) -> Array:
    """Returns the feature matching loss |E f(x) - E f(G(z))|^2, a scalar. Salimans et al. 2016, section 3.1.

    real, fake: D's features f of real and of generated images, [B, F] each. The means E are over the global batch, so
    the function must run under the mapped axis "data" (see gen.axis).
    """
    return jnp.square(axis.mean(real.mean(0)) - axis.mean(fake.mean(0))).sum()
