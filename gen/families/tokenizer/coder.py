"""`Coder`: an encoder, a bottleneck and a decoder, as pure functions of their parameters and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array, Feature, Key, Params
from gen.families.tokenizer.bottlenecks import BatchFacts, Bottleneck, Coded, Stats
from gen.families.tokenizer.reconstruction import Reconstruction

CODER = ("encoder", "decoder")
"""Names of the coder's parameters in State.params."""
BOTTLENECK = "bottleneck"
"""Name of the bottleneck's statistics in State.stats."""


@dataclass(frozen=True)
class Coder:
    """Encodes images or sound as codes, and decodes codes.

    The argument `params` of its methods is {"encoder": ..., "decoder": ...}, without "encoder" if the encoder has no
    parameters. The argument `stats` holds the bottleneck's statistics.
    """

    encoder: nn.Module
    decoder: nn.Module
    bottleneck: Bottleneck
    reconstruction: Reconstruction
    name: str
    """Name of the feature that is encoded: "image" or "audio"."""
    example: Feature
    """The feature that is encoded: shape [*axes, C] of one example, and for audio the sample rate."""
    grid: tuple[int, ...]
    """Number of positions along each axis of the grid of codes."""
    codes: Feature
    """The feature of the codes: shape of one example's codes, and the vocabulary if they are tokens."""
    dtype: DTypeLike
    """Dtype of examples, vectors and losses."""

    def init(self, key: Key) -> dict[str, Params]:
        """Returns random initial parameters, {"encoder": ..., "decoder": ...}. An encoder without any has no entry."""
        encoder_key, decoder_key = jax.random.split(key)
        # Flax only uses the shapes of these inputs.
        x, z = jnp.zeros((1, *self.example.shape)), jnp.zeros((1, *self.grid, self.bottleneck.channels))
        found = {
            "encoder": self.encoder.init(encoder_key, x).get("params"),
            "decoder": self.decoder.init(decoder_key, z)["params"],
        }
        # The encoder of a vocoder has no parameters, so it gets no entry.
        return {name: params for name, params in found.items() if params}

    def encode(
        self, params: Params, stats: Stats, x: Array, keys: Key | None = None, batch: BatchFacts | None = None
    ) -> Coded:
        """Encodes examples x [B, *axes, C] in [-1, 1]. keys, batch: see `Bottleneck.encode`; None in evaluation."""
        h = _apply(self.encoder, params.get("encoder", {}), x.astype(self.dtype))
        return self.bottleneck.encode(stats, h, keys, batch)

    def decode(self, params: Params, z: Array) -> Array:
        """Decodes vectors z [B, *grid, channels] to outputs [B, *axes, outputs].

        The methods of `reconstruction` compute examples and losses from these outputs.
        """
        return _apply(self.decoder, params["decoder"], z.astype(self.dtype))

    def reconstruct(self, params: Params, stats: Stats, x: Array) -> tuple[Array, Array]:
        """Encodes and decodes examples x [B, *axes, C] in [-1, 1], as in evaluation. Returns (reconstructions, codes).

        The reconstructions are float32 [B, *axes, C] in [-1, 1]. The codes are as in `Coded.codes`.
        """
        codes = self.encode(params, stats, x).codes
        return self.show(params, stats, codes), codes

    def show(self, params: Params, stats: Stats, codes: Array) -> Array:
        """Decodes codes (see `Coded.codes`) to examples, float32 [B, *axes, C] in [-1, 1]."""
        return self.show_outputs(self.decode(params, self.bottleneck.decode(stats, codes)))

    def show_outputs(self, outputs: Array) -> Array:
        """Converts the decoder's outputs [B, *axes, outputs] to examples, float32 [B, *axes, C] in [-1, 1]."""
        return self.reconstruction.show(outputs).clip(-1, 1).astype(jnp.float32)


def _apply(network: nn.Module, params: Params, x: Array) -> Array:
    return cast("Any", network.apply({"params": params}, x))
