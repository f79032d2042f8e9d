"""Loss terms of a tokenizer that need another network: a discriminator (`Adversary`) or a classifier (`Perceptual`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp

from gen.core import Array
from gen.errors import UserError, check_not_negative, check_positive
from gen.families.gan.losses import NonSaturating, Objective
from gen.networks import discriminator
from gen.optim import Scalar
from gen.optim.schedules import check_scalars


@dataclass(frozen=True)
class Adversary:
    """Adversarial loss: a discriminator learns to tell reconstructions from images, and the decoder to deceive it.

    As in a VQ-GAN, Esser et al. 2021. The discriminator is trained as in gen.families.gan.
    """

    discriminator: discriminator.Architecture = discriminator.DCGAN()
    """Network of the discriminator."""
    objective: Objective = NonSaturating()
    """Losses of the discriminator and of the decoder."""
    weight: Scalar = 0.02
    """Weight of the decoder's adversarial loss. For example, the schedule Piecewise((1000,), (0.0, 0.02)) adds this
    loss after 1,000 steps, when reconstructions are already good."""
    r1: Scalar = 0.0
    """Gamma of the R1 penalty: the discriminator's loss gets gamma / 2 |grad D|^2 at real images. 0: no penalty."""

    def __post_init__(self):
        check_scalars(check_not_negative, weight=self.weight, r1=self.r1)
        if self.r1 != 0.0 and (causes := self.discriminator.couplings()):
            raise UserError(
                "r1 penalizes the gradient of each score with respect to its own image, but with "
                f"{' and '.join(causes)} a score depends on the whole batch; leave one of the two out"
            )

    def coupling(self) -> str | None:
        """Returns why the loss of an example depends on other examples of the batch, such as "batch normalization".

        None: it depends on its own example only.
        """
        objective = f"the objective {type(self.objective).__name__}" if self.objective.couples else None
        return next(iter(self.discriminator.couplings()), objective)

    def tiny(self) -> Adversary:
        return replace(self, discriminator=self.discriminator.tiny())


@dataclass(frozen=True)
class Perceptual:
    """Perceptual loss: the distance between a classifier's features of an image and of its reconstruction.

    Johnson et al. 2016, equation 2; Zhang et al. 2018. The classifier is trained together with the tokenizer, on the
    labels of the images. gen.evaluate measures quality with another classifier, because a tokenizer that was trained on
    a classifier's features gets better scores from it than it deserves.
    """

    weight: Scalar = 0.1
    """Weight of the perceptual loss."""
    convolutions: tuple[int, ...] = (16, 32)
    """Channels of the classifier's convolutions, which are 4x4 with stride 2."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the classifier's dense layers. The outputs of the last one are the features."""

    def __post_init__(self):
        check_scalars(check_not_negative, weight=self.weight)
        check_positive(**{"the smallest width of convolutions": min(self.convolutions, default=1)})
        check_positive(**{"the smallest width of hidden": min(self.hidden, default=0)})

    def tiny(self) -> Perceptual:
        return replace(self, convolutions=(4,) * len(self.convolutions), hidden=(8,) * len(self.hidden))


def feature_distance(x: Array, y: Array) -> Array:
    """Returns the distance [B] between feature vectors x and y [B, D]: 1 - cosine of their angle.

    Their lengths are ignored, because they change while the classifier is trained.
    """

    def unit(v: Array) -> Array:
        # The constant keeps the gradient finite where all features are 0.
        return v / jnp.sqrt(jnp.square(v).sum(-1, keepdims=True) + 1e-6)

    return 1 - (unit(x) * unit(y)).sum(-1)
