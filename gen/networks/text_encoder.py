"""A small encoder of short texts, such as captions, as one vector each."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.networks.dtypes import Dtypes
from gen.networks.layers import Dense

LAYERS = 2


class TextEncoder(nn.Module):
    """The mean over a text's tokens of their embeddings, after LAYERS residual convolutions over three tokens.

    It sees words and short phrases. Their order further apart is lost.
    """

    vocab: int
    end: int
    """The token after the end of a text. It is not read."""
    width: int
    dtypes: Dtypes

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        """Returns [B, width] for tokens int32 [B, L]. An empty text gives zeros."""
        # Padding has no effect on the mean, so the vector does not depend on the length that captions are filled up to.
        real = (tokens != self.end)[..., None]
        x = nn.Embed(self.vocab, self.width, embedding_init=nn.initializers.normal(1.0), **self.dtypes)(tokens) * real
        for _ in range(LAYERS):
            # A convolution as a matrix product of shifted texts: on a CPU, XLA's convolution is slow inside a scan.
            padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
            around = jnp.concatenate([padded[:, :-2], x, padded[:, 2:]], axis=-1)
            # Places after the end stay zero, so the last token of a text reads no other text.
            x += nn.gelu(Dense(self.width, **self.dtypes)(around)) * real
        return x.sum(1) / jnp.maximum(real.sum(1), 1).astype(x.dtype)
