"""Generative adversarial networks (Goodfellow et al. 2014): the hyper-parameters, and the model that they build."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import jax.numpy as jnp

from gen import core
from gen.core import LAUNCH, GenerativeModel, Spec
from gen.errors import UserError, check_decay, check_not_negative, check_positive
from gen.families.gan.ada import ADA
from gen.families.gan.augment import Augmentation
from gen.families.gan.critic import Critic
from gen.families.gan.losses import NonSaturating, Objective
from gen.families.gan.model import GANModel
from gen.families.gan.penalties import Penalties
from gen.families.gan.players import DiscriminatorModel, GeneratorModel
from gen.families.gan.sampling import Request
from gen.families.labels import num_classes
from gen.networks import discriminator, generator
from gen.networks.discriminator import Discriminator
from gen.networks.dtypes import module_dtypes
from gen.networks.generator import Conditioning
from gen.optim import Optimizer, Scalar, schedule
from gen.optim.schedules import check_scalars

PROTOCOL = {
    "paired_accuracy": {"pairs": "each held-out image and a generated one, scores compared"},
    "saturation": {"threshold": "D's loss exceeds its minimum by less than 1% of its loss at scores of 0"},
}
"""{metric: how it is estimated}, for metrics of a held-out split. Stored with each reported metric."""


@dataclass(frozen=True)
class GAN(core.Family):
    """A generative adversarial network: a generator G makes images, and a discriminator D tells them from real ones."""

    latent: int = 100
    """Dimensions of z, the standard normal input of G."""
    generator: generator.Architecture = generator.DCGAN()
    """Network of G."""
    discriminator: discriminator.Architecture = discriminator.DCGAN()
    """Network of D."""
    conditioning: Conditioning | None = None
    """How G and D read the label. concatenation: the label is appended to z and to the image. projection: the
    normalizations of G have a scale and a shift for each class, and D's score is increased by the inner product of an
    embedding of the class and the features (Miyato and Koyama 2018). None: the model is unconditional."""
    objective: Objective = NonSaturating()
    """Losses of D and of G (gen/families/gan/losses.py)."""
    feature_matching: float = 0.0
    """Weight, in G's loss, of the squared distance between the means of D's features over real and over generated
    images (feature matching, Salimans et al. 2016). 0: off."""
    gradient_penalty: float = 0.0
    """Weight of the penalty (|grad D| - 1)^2 in D's loss, at random points between real and generated images. 10 in WGAN-GP
    (Gulrajani et al. 2017). 0: off."""
    one_sided: bool = False
    """Apply the gradient penalty only where |grad D| is above 1."""
    r1: Scalar = 0.0
    """Gamma of the R1 penalty: adds gamma / 2 |grad D|^2 at real images to D's loss (Mescheder et al. 2018). 0: off."""
    r2: Scalar = 0.0
    """Gamma of the R2 penalty: adds gamma / 2 |grad D|^2 at generated images to D's loss. 0: off."""
    pack: int = 1
    """Number of images to which D gives one joint score; their channels are concatenated (PacGAN, Lin et al. 2018). 1: each
    image is scored alone."""
    augment: Augmentation | None = None
    """Random transformations of every image that D sees in training, with a fixed (DiffAugment) or an adaptive strength (ADA).
    None: off."""
    microbatches: int = field(default=1, metadata=LAUNCH)
    """Number of parts that a device's batch is divided into. Their gradients are computed one after the other and averaged,
    which gives the same update with less memory."""
    critic_steps: int = 1
    """Number of steps of D for each step of G. Each step of D reads a new batch."""
    generator_optim: Optimizer = Optimizer(lr=2e-4, b1=0.5)
    """Optimizer of G."""
    discriminator_optim: Optimizer = Optimizer(lr=2e-4, b1=0.5)
    """Optimizer of D."""
    ema: float = 0.999
    """Decay of the moving average of G's parameters, in [0, 1). The average, at least float32, generates the samples. The decay
    grows from 1/10 to this value. 0: no average."""
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of activations."""
    param_dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    """Dtype of parameters. Their averages and the optimizers' moments are at least float32."""

    def __post_init__(self):
        check_positive(
            latent=self.latent, pack=self.pack, critic_steps=self.critic_steps, microbatches=self.microbatches
        )
        check_not_negative(feature_matching=self.feature_matching, gradient_penalty=self.gradient_penalty)
        check_scalars(check_not_negative, r1=self.r1, r2=self.r2)
        check_decay(ema=self.ema)
        if self.one_sided and not self.gradient_penalty:
            raise UserError("one_sided is a form of gradient_penalty, which is 0; the fix: --model.gradient-penalty 10")
        self._check_conditioning()
        self._check_coupling()
        # A shift-invariant objective leaves the zero of the scores arbitrary, and ADA compares scores with zero.
        if isinstance(self.augment, ADA) and self.objective.shift_invariant:
            raise UserError(
                f"ADA reads the signs of D's scores, which mean nothing with the objective {self._objective_name}; "
                "use DiffAugment, or another objective"
            )

    def _check_conditioning(self) -> None:
        if self.conditioning == "projection" and self.generator.norm == "none":
            raise UserError(
                "conditioning projection scales the normalizations of G by class, and G has none; "
                "the fix: --model.generator.norm batch"
            )
        if self.conditioning and self.pack > 1:
            raise UserError("a pack of images has no single label; use pack 1, or no conditioning")

    def _check_coupling(self) -> None:
        """Checks that the examples of a batch are independent of each other where the config needs this.

        Raises: UserError if gradient penalties are used although D's scores depend on the whole batch, or if
        microbatches are used although the loss of an example does.
        """
        penalties = [name for name in ("gradient_penalty", "r1", "r2") if getattr(self, name) != 0.0]
        if penalties and (causes := self.discriminator.couplings()):
            raise UserError(
                f"{penalties[0]} penalizes the gradient of each score with respect to its own image, but with "
                f"{' and '.join(causes)} a score depends on the whole batch; the fix: "
                + " ".join(f"--model.discriminator.{option}" for option in causes.values())
            )
        if self.microbatches > 1 and (cause := self._coupling()):
            raise UserError(
                f"with {cause} the loss of an example depends on the whole batch, which microbatches divide; "
                "the fix: --model.microbatches 1"
            )

    def _coupling(self) -> str | None:
        """Returns what makes the loss of an example depend on other examples of the batch, such as "feature matching".

        Returns None if the loss of each example depends on this example alone.
        """
        # A pack holds neighbouring images, but a microbatch takes every n-th example, so it would form other packs.
        return (
            next(iter(self.discriminator.couplings()), None)
            or ("batch normalization" if self.generator.norm == "batch" else None)
            or ("feature matching" if self.feature_matching else None)
            or ("packs of images" if self.pack > 1 else None)
            or (f"the objective {self._objective_name}" if self.objective.couples else None)
        )

    @property
    def _objective_name(self) -> str:
        return type(self.objective).__name__

    def count_steps(self, field: str, steps: int) -> int:
        return steps * self.critic_steps if field == "discriminator_optim" else steps

    def tiny(self) -> GAN:
        return replace(
            self,
            latent=4,
            generator=self.generator.tiny(),
            discriminator=self.discriminator.tiny(),
            critic_steps=min(2, self.critic_steps),
        )

    def inherit(self, base: core.Family, spec: Spec) -> GAN:
        super().inherit(base, spec)
        assert isinstance(base, GAN)
        # These fields decide the shapes of the parameters. Objective, penalties and optimizers may differ from the base.
        return replace(
            self,
            latent=base.latent,
            generator=base.generator,
            discriminator=base.discriminator,
            conditioning=base.conditioning,
            pack=base.pack,
        )

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        generator, discriminator = self.players(spec)
        d_optimizer = self.discriminator_optim.build(self.count_steps("discriminator_optim", steps))
        model = GANModel(
            generator=generator,
            g_optimizer=self.generator_optim.build(steps),
            critic=Critic(discriminator, self.objective, self.penalties(steps), d_optimizer, self.microbatches),
            feature_matching=self.feature_matching,
            critic_steps=self.critic_steps,
            ema=self.ema,
        )
        return GenerativeModel(
            init=model.init,
            update=model.update,
            evaluate=model.evaluate,
            generate=model.generate,
            request=Request,
            losses=("loss/discriminator", "loss/generator"),
            protocol=PROTOCOL,
            batches=self.critic_steps,
            together=self.pack * self.microbatches,
            # Statistics to copy from a base run. Without them, spectral norms would begin with random vectors, and G's
            # normalizations would not be those of the base.
            inherited=("generator", "discriminator"),
        )

    def players(self, spec: Spec) -> tuple[GeneratorModel, DiscriminatorModel]:
        """Returns G and D for the images of the data. spec: the features of the data.

        Raises: UserError if the data have no images, if the model is conditional and the data have no labels, or if G can't
        make images of this size.
        """
        if "image" not in spec:
            raise UserError(f"a GAN models images, and the data have {', '.join(spec)}; choose a set of images")
        shape, dtypes = spec["image"].shape, module_dtypes(self.dtype, self.param_dtype)
        # If one number added to all scores changes no loss, the bias of the last layer has no gradient.
        bias = not self.objective.shift_invariant
        classes = num_classes(spec) if self.conditioning else None
        # Latents, images and scores stay at least float32: losses and penalties need the precision.
        dtype = jnp.promote_types(self.dtype, jnp.float32)
        g = self.generator.build(shape, self.conditioning, dtypes)
        d = Discriminator(self.discriminator, self.conditioning, bias, dtypes)
        return (
            GeneratorModel(g, self.latent, classes, dtype),
            DiscriminatorModel(d, shape, classes, self.pack, self.augment, dtype),
        )

    def penalties(self, steps: int) -> Penalties:
        """Returns the gradient penalties of D with their weights. The weights of R1 and R2 may be schedules.

        steps: number of steps of G in the whole run, over which these schedules extend.
        """
        r1 = schedule(self.r1, steps) if self.r1 != 0.0 else None
        r2 = schedule(self.r2, steps) if self.r2 != 0.0 else None
        return Penalties(self.gradient_penalty, self.one_sided, r1, r2)
