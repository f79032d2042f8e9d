"""An encoder, a bottleneck and a decoder as pure functions of their parameters and statistics."""

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
    """Encodes images or sound as codes, and decodes them.

    The argument `params` is {"encoder": ..., "decoder": ...}. A fixed encoder has no parameters, and no entry. The argument `stats`
    is the bottleneck's statistics.
    """

    encoder: nn.Module
    decoder: nn.Module
    bottleneck: Bottleneck
    reconstruction: Reconstruction
    name: str
    """Name of the feature that is encoded: image or audio."""
    example: Feature
    """One example of it."""
    grid: tuple[int, ...]
    """Shape of the grid of codes."""
    codes: Feature
    """The codes of one example."""
    dtype: DTypeLike
    """Dtype of examples, vectors and losses."""

    def init(self, key: Key) -> dict[str, Params]:
        """Returns the parameters at step 0."""
        encoder_key, decoder_key = jax.random.split(key)
        # Flax only uses the shapes of these inputs.
        x, z = jnp.zeros((1, *self.example.shape)), jnp.zeros((1, *self.grid, self.bottleneck.channels))
        found = {
            "encoder": self.encoder.init(encoder_key, x).get("params"),
            "decoder": self.decoder.init(decoder_key, z)["params"],
        }
        # The fixed encoder of a vocoder has no parameters, and so no entry.
        return {name: params for name, params in found.items() if params}

    def encode(
        self, params: Params, stats: Stats, x: Array, keys: Key | None = None, batch: BatchFacts | None = None
    ) -> Coded:
        """Encodes examples x [B, *axes, C] in [-1, 1]. keys, batch: only in training; see `Bottleneck.encode`."""
        h = _apply(self.encoder, params.get("encoder", {}), x.astype(self.dtype))
        return self.bottleneck.encode(stats, h, keys, batch)

    def decode(self, params: Params, z: Array) -> Array:
        """Decodes vectors [B, *grid, channels] to the outputs that `reconstruction` takes, [B, *axes, outputs]."""
        return _apply(self.decoder, params["decoder"], z.astype(self.dtype))

    def reconstruct(self, params: Params, stats: Stats, x: Array) -> tuple[Array, Array]:
        """Returns the reconstructions of examples, float32 [B, *axes, C] in [-1, 1], and their codes."""
        codes = self.encode(params, stats, x).codes
        return self.show(params, stats, codes), codes

    def show(self, params: Params, stats: Stats, codes: Array) -> Array:
        """Returns the examples that codes stand for, float32 [B, *axes, C] in [-1, 1]."""
        return self.show_outputs(self.decode(params, self.bottleneck.decode(stats, codes)))

    def show_outputs(self, outputs: Array) -> Array:
        """Returns the decoder's outputs as examples, float32 [B, *axes, C] in [-1, 1]."""
        return self.reconstruction.show(outputs).clip(-1, 1).astype(jnp.float32)


def _apply(network: nn.Module, params: Params, x: Array) -> Array:
    return cast("Any", network.apply({"params": params}, x))
