"""Variational autoencoders: the family, and the likelihoods and priors that a config chooses from or a fork subclasses."""

from gen.families.vae.family import VAE
from gen.families.vae.likelihoods import Bernoulli, ContinuousBernoulli, DiscretizedLogistic, Gaussian, Likelihood
from gen.families.vae.priors import GaussianMixture, Prior, StandardNormal, VampPrior

__all__ = [
    "VAE",
    "Bernoulli",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "GaussianMixture",
    "Likelihood",
    "Prior",
    "StandardNormal",
    "VampPrior",
]
