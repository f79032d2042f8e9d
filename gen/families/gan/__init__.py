"""Generative adversarial networks: exports the family and the objectives, augmentations and request that a config can name."""

from gen.families.gan.ada import ADA
from gen.families.gan.augment import Augmentation, DiffAugment
from gen.families.gan.family import GAN
from gen.families.gan.losses import (
    Hinge,
    LeastSquares,
    Minimax,
    NonSaturating,
    Objective,
    Relativistic,
    RelativisticAverage,
    Smoothed,
    Wasserstein,
)
from gen.families.gan.sampling import Request

__all__ = [
    "ADA",
    "GAN",
    "Augmentation",
    "DiffAugment",
    "Hinge",
    "LeastSquares",
    "Minimax",
    "NonSaturating",
    "Objective",
    "Relativistic",
    "RelativisticAverage",
    "Request",
    "Smoothed",
    "Wasserstein",
]
