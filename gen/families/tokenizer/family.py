"""Tokenizers encode images or sound as a grid of codes, and decode codes (van den Oord et al. 2017; Esser et al. 2021).

family          the hyper-parameters, and the model that they build
coder           encoder, bottleneck and decoder as one object
bottlenecks     codes between encoder and decoder: continuous latents (KL), the identity (Fixed), and the base class
quantizers      bottlenecks whose codes are tokens: FSQ, Residual, and the base class
codebook        VQ
reconstruction  the loss of a reconstruction
spectral        the loss and the quality of reconstructed sound
terms           loss terms that have a network: an adversary, and the features of a classifier
model           training, evaluation, reconstructions
quality         PSNR, SSIM, and the quality of sound, with their protocols
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from gen import core
from gen.core import Adapter, GenerativeModel, Spec
from gen.errors import UserError
from gen.families.gan.critic import Critic
from gen.families.gan.penalties import Penalties
from gen.families.gan.players import DiscriminatorModel
from gen.families.labels import num_classes
from gen.families.learner import LearnedFamily, make_learner
from gen.families.tokenizer.bottlenecks import Bottleneck
from gen.families.tokenizer.coder import BOTTLENECK, Coder
from gen.families.tokenizer.model import FeatureNetwork, Request, TokenizerModel, summarize
from gen.families.tokenizer.quality import CODE_METRICS, PROTOCOL, SOUND_PROTOCOL
from gen.families.tokenizer.quantizers import FSQ
from gen.families.tokenizer.reconstruction import L2, Reconstruction
from gen.families.tokenizer.terms import Adversary, Perceptual
from gen.networks.classifier import Classifier
from gen.networks.discriminator import Discriminator
from gen.networks.tokenizer import Architecture, Residual
from gen.optim import Optimizer, schedule

FEATURES = ("image", "audio")
"""Names of the features that a tokenizer can encode. If the data have both, it encodes the first."""
AXES = {1: ("time",), 2: ("row", "column"), 3: ("frame", "row", "column")}
"""{number of axes of an example: names of the axes of its grid of codes}."""


@dataclass(frozen=True)
class Tokenizer(LearnedFamily):
    """Hyper-parameters of a tokenizer: an encoder, a bottleneck that turns its outputs into codes, and a decoder."""

    network: Architecture = Residual()
    """Layers of the encoder and the decoder."""
    bottleneck: Bottleneck = FSQ()
    """Turns the encoder's outputs into codes: FSQ, VQ, Residual or KL; Fixed for a vocoder."""
    reconstruction: Reconstruction = L2()
    """Loss between an example and its reconstruction: L1, L2 or Likelihood; Spectral for sound."""
    adversary: Adversary | None = None
    """Adds an adversarial loss: a discriminator learns to tell reconstructions from images, and the decoder to deceive
    it. Images only. None: off."""
    discriminator_optim: Optimizer = Optimizer(lr=2e-4, b1=0.5)
    """Optimizer of the adversary's discriminator."""
    perceptual: Perceptual | None = None
    """Adds a perceptual loss: the distance between a classifier's features of an image and of its reconstruction. It
    needs images with labels. None: off."""
    classifier_optim: Optimizer = Optimizer(lr=1e-3, weight_decay=0.1)
    """Optimizer of the classifier of the perceptual loss."""

    def __post_init__(self):
        super().__post_init__()
        if self.adversary and self.microbatches > 1 and (cause := self.adversary.coupling()):
            raise UserError(
                f"with {cause} the loss of an example depends on the whole batch, and microbatches would split it; "
                "the fix: --model.microbatches 1"
            )

    def tiny(self) -> Tokenizer:
        return replace(
            self,
            network=self.network.tiny(),
            bottleneck=self.bottleneck.tiny(),
            reconstruction=self.reconstruction.tiny(),
            adversary=self.adversary and self.adversary.tiny(),
            perceptual=self.perceptual and self.perceptual.tiny(),
        )

    def inherit(self, base: core.Family, spec: Spec) -> Tokenizer:
        super().inherit(base, spec)
        assert isinstance(base, Tokenizer)
        # Fields that decide the shapes of parameters, and the loss that decides what the decoder's outputs mean.
        shaped = ("network", "bottleneck", "reconstruction", "adversary", "perceptual")
        return replace(self, **{name: getattr(base, name) for name in shaped})

    def with_adapter(self, adapter: Adapter | None) -> Self:
        if adapter and (self.adversary or self.perceptual):
            raise UserError(
                "an adapter changes the encoder and the decoder alone, and the base was trained against an adversary or the features of "
                "a classifier; the fix: --finetune full"
            )
        return super().with_adapter(adapter)

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """Returns the model for images or sound of this spec.

        Raises: UserError if the data have no images or sound, or no labels for `perceptual`, or do not suit the loss or
        the network.
        """
        coder = self.coder(spec)
        model = TokenizerModel(
            coder=coder,
            learner=make_learner(self, steps, "tokenizer", coder.init),
            critic=self._critic(spec, steps),
            adversary_weight=schedule(self.adversary.weight if self.adversary else 0.0, steps),
            features=self._features(spec, steps),
        )
        about = PROTOCOL if coder.name == "image" else SOUND_PROTOCOL
        losses = {"loss": True, "loss/discriminator": self.adversary, "loss/classifier": self.perceptual}
        return GenerativeModel(
            init=model.init,
            update=model.update,
            evaluate=model.evaluate,
            summarize=summarize,
            generate=model.generate,
            request=Request,
            losses=tuple(name for name, has_it in losses.items() if has_it),
            together=self.microbatches,
            inherited=(BOTTLENECK, "discriminator"),
            # Latents have no vocabulary, so their codes are not counted.
            protocol={name: about[name] for name in about if coder.codes.vocab or name not in CODE_METRICS},
        )

    def coder(self, spec: Spec) -> Coder:
        """Returns the encoder, bottleneck and decoder for examples of this spec. Raises: as `build`."""
        name = next((name for name in FEATURES if name in spec), None)
        if name is None:
            raise UserError(
                f"a tokenizer encodes images or sound, and the data have {', '.join(spec)}; choose data with one of them"
            )
        example = spec[name]
        # The networks of both loss terms read images.
        if name != "image" and (self.adversary or self.perceptual):
            raise UserError("adversary and perceptual compare images, and the data have sound; leave them out")
        self.reconstruction.check(example)
        reconstruction, network = self.reconstruction.suit(example), self.network.suit(example)
        # The networks take any number of axes: one for sound, two for images.
        *axes, channels = example.shape
        grid = network.grid(tuple(axes))
        return Coder(
            encoder=network.encoder(self.bottleneck.inputs, self.dtypes()),
            decoder=network.decoder((*axes, reconstruction.outputs(channels)), self.dtypes()),
            bottleneck=self.bottleneck,
            reconstruction=reconstruction,
            name=name,
            example=example,
            grid=grid,
            codes=self.bottleneck.feature(grid, AXES[len(axes)]),
            dtype=self.real_dtype(),
        )

    def _critic(self, spec: Spec, steps: int) -> Critic | None:
        if self.adversary is None:
            return None
        adversary, image = self.adversary, spec["image"]
        # Some objectives only compare scores. The bias of the last layer would have no gradient, so it is left out.
        network = Discriminator(adversary.discriminator, None, not adversary.objective.shift_invariant, self.dtypes())
        # Reconstructions are scored one by one, without labels: a decoder that must look real needs no class.
        dtype = self.real_dtype()
        discriminator = DiscriminatorModel(network, image.shape, classes=None, pack=1, augment=None, dtype=dtype)
        r1 = schedule(adversary.r1, steps) if adversary.r1 != 0.0 else None
        penalties = Penalties(gradient=0.0, one_sided=False, r1=r1, r2=None)
        optimizer = self.discriminator_optim.build(steps)
        return Critic(discriminator, adversary.objective, penalties, optimizer, self.microbatches)

    def _features(self, spec: Spec, steps: int) -> FeatureNetwork | None:
        if self.perceptual is None:
            return None
        network = Classifier(self.perceptual.convolutions, self.perceptual.hidden, num_classes(spec), self.dtypes())
        return FeatureNetwork(network, self.classifier_optim.build(steps), schedule(self.perceptual.weight, steps))
