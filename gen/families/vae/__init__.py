"""Variational autoencoders: the family, its likelihoods and its priors.

A config chooses one likelihood and one prior. To add your own, subclass `Likelihood` or `Prior`.
"""

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
