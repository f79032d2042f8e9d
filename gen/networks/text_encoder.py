"""A small encoder of short texts, such as captions, as one vector each."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.networks.dtypes import Dtypes
from gen.networks.layers import Dense

LAYERS = 2
"""Number of convolutions."""


class TextEncoder(nn.Module):
    """Embeds the tokens of a text, applies LAYERS residual convolutions over three tokens, and returns the mean over the tokens.

    So the vector depends on words and short phrases. The order of words that are far apart is lost.
    """

    vocab: int
    end: int
    """The padding token, which fills texts up to their full length. It has no effect on the output."""
    width: int
    dtypes: Dtypes

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Returns [B, width] for tokens int32 [B, L]. An empty text gives zeros."""
        # Padding is left out of the mean, so the output does not depend on the length to which texts are filled up.
        real = (tokens != self.end)[..., None]
        x = nn.Embed(self.vocab, self.width, embedding_init=nn.initializers.normal(1.0), **self.dtypes)(tokens) * real
        for _ in range(LAYERS):
            # The convolution is a matrix product of shifted texts, because XLA's convolution is slow inside a scan on a CPU.
            padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            around = jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=-1)
            # Padding stays 0, as the zeros around the text.
            x += nn.gelu(Dense(self.width, **self.dtypes)(around)) * real
        return x.sum(1) / jnp.maximum(real.sum(1), 1).astype(x.dtype)
