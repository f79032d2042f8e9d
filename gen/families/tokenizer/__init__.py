"""Tokenizers: autoencoders that turn images or sound into codes. Exports the classes that a config can name.

A config chooses one bottleneck and one reconstruction loss. To add your own, subclass `Bottleneck`, `Quantizer` or
`Reconstruction`.
"""

from gen.families.tokenizer.bottlenecks import KL, Bottleneck, Fixed
from gen.families.tokenizer.codebook import VQ
from gen.families.tokenizer.family import Tokenizer
from gen.families.tokenizer.quantizers import FSQ, Quantizer, Residual
from gen.families.tokenizer.reconstruction import L1, L2, Likelihood, Reconstruction
from gen.families.tokenizer.spectral import Spectral
from gen.families.tokenizer.terms import Adversary, Perceptual
from gen.networks.vocoder import SpectralCodec, Vocoder

__all__ = [
    "FSQ",
    "KL",
    "L1",
    "L2",
    "VQ",
    "Adversary",
    "Bottleneck",
    "Fixed",
    "Likelihood",
    "Perceptual",
    "Quantizer",
    "Reconstruction",
    "Residual",
    "Spectral",
    "SpectralCodec",
    "Tokenizer",
    "Vocoder",
]
