"""Variational autoencoders."""

from gen.families.vae.family import VAE

__all__ = ["VAE"]
