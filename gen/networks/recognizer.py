"""A small recognizer of speech: from log-mel frames to the logits of characters, for the loss of CTC (Graves et al. 2006)."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp

from gen.core import Array
from gen.networks.layers import Dense, dropout

STACKED = 2
"""Number of consecutive frames that are joined to one position of the network."""
REACH = 2
"""Number of positions on each side of a position that a layer reads."""


class Recognizer(nn.Module):
    """Residual convolutions over time, as in Wav2Letter (Collobert et al. 2016), with a LayerNorm before each."""

    outputs: int
    """Number of logits of a position: one for the blank of CTC, and one for each character."""
    width: int
    dilations: tuple[int, ...]
    """Dilation of each convolution: distance, in positions, between neighbouring positions that it reads."""
    dropout: float

    @nn.compact
    def __call__(self, frames: Array, keys: Array | None = None) -> Array:
        """Returns logits [B, ceil(F / STACKED), outputs] for log-mels [B, F, bands].

        keys: dropout keys [B]; None: no dropout.
        """
        x = jnp.pad(frames, ((0, 0), (0, -frames.shape[1] % STACKED), (0, 0)))
        x = Dense(self.width)(x.reshape(len(x), -1, STACKED * x.shape[2]))
        for i, dilation in enumerate(self.dilations):
            h = around(nn.LayerNorm()(x), dilation)
            x += dropout(nn.gelu(Dense(self.width)(h)), keys, i, self.dropout)
        return Dense(self.outputs)(nn.LayerNorm()(x))


def around(x: Array, dilation: int) -> Array:
    """Concatenates each position of x [B, T, D] with REACH positions on each side: [B, T, (2 REACH + 1) D].

    These positions are `dilation` apart. Positions outside of x are zeros.
    """
    # A convolution as a matrix product, because XLA's convolution is slow inside a scan on a CPU.
    n, width = x.shape[1], REACH * dilation
    padded = jnp.pad(x, ((0, 0), (width, width), (0, 0)))
    return jnp.concatenate([padded[:, i * dilation : i * dilation + n] for i in range(2 * REACH + 1)], axis=-1)
