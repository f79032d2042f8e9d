"""Variational autoencoders (Kingma and Welling 2014; Rezende et al. 2014), with one latent group or a hierarchy of groups.

The modules of this folder:

family      the hyper-parameters, and the model that they build
latent      q(z | x), p(z) and p(x | z) as one object, made from an encoder, a decoder, a prior and a likelihood
objectives  training losses and the update
losses      log-probabilities and bounds as functions of arrays
priors      p(z) of the top latent group
likelihoods p(x | z)
bounds      evaluation on a split
sampling    samples, reconstructions, interpolations, traversals
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from gen import core
from gen.core import GenerativeModel, Spec
from gen.errors import UserError, check_not_negative, check_positive
from gen.families.labels import num_classes
from gen.families.learner import LearnedFamily, make_learner
from gen.families.vae.bounds import BoundEstimator, BoundReport
from gen.families.vae.latent import LatentModel
from gen.families.vae.likelihoods import Bernoulli, Likelihood
from gen.families.vae.objectives import ELBO, IWAE, Objective, Training
from gen.families.vae.priors import Prior, StandardNormal, VampPrior
from gen.families.vae.sampling import Request, Sampler
from gen.networks.vae import Architecture, Perceptron
from gen.optim import Scalar, schedule
from gen.optim.schedules import check_scalars


@dataclass(frozen=True)
class VAE(LearnedFamily):
    """A variational autoencoder of images, with one group of latents or a hierarchy of groups."""

    latents: tuple[int, ...] = (20,)
    """Number of dimensions of each latent group, top group first. With one group it is a plain VAE."""
    network: Architecture = Perceptron()
    """Layers of the encoder and the decoder."""
    likelihood: Likelihood = Bernoulli()
    """Likelihood p(x | z) of the pixels."""
    prior: Prior = StandardNormal()
    """Prior p(z) of the top latent group. The groups below have learned Gaussian priors."""
    conditional: bool = False
    """Condition encoder and decoder on the label."""
    objective: Literal["elbo", "iwae"] = "elbo"
    """Bound that training maximizes: elbo, the evidence lower bound, or iwae, the importance-weighted bound (Burda et al. 2016)."""
    samples: int = 1
    """Number of posterior samples of each example in training (K of the importance-weighted bound)."""
    dreg: bool = False
    """Use doubly reparameterized gradients of the importance-weighted bound (Tucker et al. 2019), which have less variance."""
    beta: Scalar = 1.0
    """Weight of the KL in the evidence lower bound (Higgins et al. 2017). With a Warmup schedule: KL warm-up."""
    free_bits: float = 0.0
    """Free bits, in nats: the KL of a latent dimension is only penalized where its mean over the batch is above this (Kingma et
    al. 2016). 0: off."""
    validation_samples: int = 16
    """Number K of posterior samples for `nll_bound` during training."""
    test_samples: int = 1000
    """Number K of posterior samples for `nll_bound` in the final test."""

    def __post_init__(self):
        super().__post_init__()
        check_positive(**{"the number of latents": min(self.latents, default=0), "samples": self.samples})
        check_positive(validation_samples=self.validation_samples, test_samples=self.test_samples)
        check_scalars(check_not_negative, beta=self.beta, free_bits=self.free_bits)
        self._check_objective()
        if self.free_bits != 0.0 and self.microbatches > 1:
            raise UserError(
                "free bits need the mean KL of the whole batch, and microbatches divide it; leave one of the two out"
            )
        if self.conditional and isinstance(self.prior, VampPrior):
            raise UserError(
                "the pseudo-inputs of a VampPrior have no labels; choose another prior for a conditional VAE"
            )

    def _check_objective(self) -> None:
        if self.objective == "iwae" and (self.beta != 1.0 or self.free_bits):
            raise UserError(
                "beta and free_bits change the KL, and the importance-weighted bound has no KL; use objective elbo"
            )
        if self.dreg and self.objective != "iwae":
            raise UserError("dreg is a gradient of the importance-weighted bound; the fix: --model.objective iwae")
        if self.dreg and len(self.latents) > 1:
            raise UserError("dreg needs one latent group, because its gradient is biased in a hierarchy; leave one out")

    def tiny(self) -> VAE:
        return replace(
            self,
            latents=(3,) * len(self.latents),
            network=self.network.tiny(),
            prior=self.prior.tiny(),
            samples=min(2, self.samples),
            validation_samples=2,
            test_samples=4,
        )

    def inherit(self, base: core.Family, spec: Spec) -> VAE:
        super().inherit(base, spec)
        assert isinstance(base, VAE)
        # These fields decide the shapes of parameters, and the likelihood decides what the decoder's outputs mean.
        shaped = ("latents", "network", "likelihood", "prior", "conditional")
        return replace(self, **{name: getattr(base, name) for name in shaped})

    def build(self, spec: Spec, steps: int) -> GenerativeModel:
        """Returns the model for the images that `spec`, the features of the data, describes.

        Raises: UserError if the data have no images, if the model is conditional and the data have no labels, or if the
        images do not suit the likelihood or the network.
        """
        model = self.latent_model(spec)
        learner = make_learner(self, steps, "vae", partial(model.init, param_dtype=self.param_dtype))
        given = ("label",) if self.conditional else ()
        report = BoundReport(model.image, self.likelihood.mismatch(model.image), self.test_samples, given)
        return GenerativeModel(
            init=learner.init,
            update=Training(self._objective(model, steps), learner, self.samples).update,
            evaluate=BoundEstimator(model, learner.weights, self.validation_samples).evaluate,
            # A bound gets tighter with more samples, so the final test uses more of them than evaluations during training.
            test=BoundEstimator(model, learner.weights, self.test_samples).evaluate,
            summarize=report.summarize,
            generate=Sampler(model, learner.weights).sample,
            request=Request,
            together=self.microbatches,
            protocol=report.protocol(),
        )

    def latent_model(self, spec: Spec) -> LatentModel:
        """Returns the encoder, decoder, prior and likelihood as one object. For `spec` and errors, see `build`."""
        if "image" not in spec:
            raise UserError(f"a VAE models images, and the data have {', '.join(spec)}; choose data with images")
        image = spec["image"]
        classes = num_classes(spec) if self.conditional else None
        self.likelihood.check(image)
        height, width, channels = image.shape
        shape = height, width, self.likelihood.outputs(channels)
        return LatentModel(
            self.network.encoder(self.latents, self.dtypes()),
            self.network.decoder(self.latents, shape, self.dtypes()),
            self.prior,
            self.likelihood,
            image,
            classes,
            # bfloat16 is for activations only: latents, log-probabilities and sums need float32.
            self.real_dtype(),
        )

    def _objective(self, model: LatentModel, steps: int) -> Objective:
        if self.objective == "iwae":
            return IWAE(model, self.dreg)
        return ELBO(model, schedule(self.beta, steps), self.free_bits)
