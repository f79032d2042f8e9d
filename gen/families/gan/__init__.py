"""Generative adversarial networks."""

from gen.families.gan.family import GAN

__all__ = ["GAN"]
