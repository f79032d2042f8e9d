"""Bottlenecks of tokenizers turn the encoder's outputs into codes. A config names one: `bottleneck=FSQ((8, 5, 5, 5))`.

A bottleneck reads the encoder's outputs h [B, *grid, inputs]. It returns codes, which can be stored and modelled, and
vectors z [B, *grid, channels], which the decoder reads. `grid` is the shape of the codes of one example, such as (8,
8). If the codes are tokens, the base class is `Quantizer` (gen/families/tokenizer/quantizers.py).

A bottleneck has no parameters that are trained by gradients. Its `Stats`, such as a codebook of moving averages, are in
State.stats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen.core import Array, Feature, Key
from gen.errors import check_not_negative, check_positive
from gen.networks.gaussian import Gaussian, gaussian_kl

Stats = Mapping[str, Array]
"""{name: array} of statistics that a bottleneck estimates from the training batches. {}: the bottleneck has none."""


class Coded(NamedTuple):
    """Output of a bottleneck for B examples."""

    z: Array
    """[B, *grid, channels]. Vectors for the decoder. Gradients pass through them to the encoder."""
    codes: Array
    """Tokens int32 [B, *grid] or [B, *grid, books], or latents [B, *grid, channels]. `decode` turns them into z."""
    loss: Array
    """[B]. The bottleneck's term of the training loss, for each example."""
    seen: Stats
    """Means over the examples of this device, from which `Bottleneck.learn` updates the statistics. {}: not in
    training, or the bottleneck has no statistics."""


class BatchFacts(NamedTuple):
    """The random key of a training step, and the position of this device's examples in the global batch.

    `encode` and `learn` read it. Only `row` differs between devices.
    """

    key: Key
    """Key of the training step."""
    row: Array
    """int32 [B]. Positions of this device's examples in the global batch."""
    size: int
    """Number of examples in the global batch."""


@dataclass(frozen=True)
class Bottleneck:
    """Base class of maps from the encoder's outputs to codes, and from codes to the decoder's inputs.

    Subclass it to add a kind of codes.
    """

    @property
    def inputs(self) -> int:
        """Number of the encoder's outputs for each position of the grid."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Number of the decoder's inputs for each position of the grid."""
        raise NotImplementedError

    def feature(self, grid: tuple[int, ...], axes: tuple[str, ...]) -> Feature:
        """Returns the `Feature` (shape, dtype, vocabulary) of one example's codes. axes: names of the grid's axes."""
        raise NotImplementedError

    def begin(self, key: Key, dtype: DTypeLike) -> Stats:
        """Returns the initial statistics, such as a random codebook. By default {}: the bottleneck has none."""
        return {}

    def encode(self, stats: Stats, h: Array, keys: Key | None, batch: BatchFacts | None) -> Coded:
        """Returns the codes of the encoder's outputs h [B, *grid, inputs], the decoder's inputs, and the loss.

        keys: random keys [B] for the noise of training. None: no noise. batch: key and rows of a training step.
        None: not in training, so that `Coded.seen` is {}.
        """
        raise NotImplementedError

    def decode(self, stats: Stats, codes: Array) -> Array:
        """Returns the decoder's inputs z [B, *grid, channels] of codes, in the shape of `Coded.codes`."""
        raise NotImplementedError

    def draw(self, grid: tuple[int, ...], key: Key) -> Array:
        """Draws random codes of one example, [*grid, ...], from a fixed distribution that does not follow the data."""
        raise NotImplementedError

    def learn(self, stats: Stats, seen: Stats, batch: BatchFacts) -> Stats:
        """Returns the statistics after a training step. seen: mean of `Coded.seen` over devices. Default: unchanged."""
        return stats

    def tiny(self) -> Bottleneck:
        """Returns the same kind of bottleneck with the smallest sizes, for tests."""
        raise NotImplementedError


MAX_LOG_STD = 10.0
"""Upper bound on the absolute log standard deviation of a latent, so that exp does not overflow."""


@dataclass(frozen=True)
class KL(Bottleneck):
    """Continuous latents: a Gaussian for each position, with a small penalty on its KL to N(0, I). Codes are its means.

    Rombach et al. 2022, section 3.1 and appendix G.
    """

    size: int = 4
    """Number of dimensions of the latent at each position of the grid."""
    weight: float = 1e-3
    """Weight of the KL to N(0, I), in nats, averaged over all dimensions and positions. A small weight keeps latents
    near 0. They need not follow N(0, I), because another model learns their distribution."""

    def __post_init__(self):
        check_positive(size=self.size)
        check_not_negative(weight=self.weight)

    @property
    def inputs(self) -> int:
        return 2 * self.size

    @property
    def channels(self) -> int:
        return self.size

    def feature(self, grid: tuple[int, ...], axes: tuple[str, ...]) -> Feature:
        return Feature((*grid, self.size), axes=(*axes, "channel"))

    def encode(self, stats: Stats, h: Array, keys: Key | None, batch: BatchFacts | None) -> Coded:
        mean, log_std = jnp.split(h, 2, axis=-1)
        # The encoder's output is unbounded, and exp of it must stay finite.
        q = Gaussian(mean, jnp.clip(log_std, -MAX_LOG_STD, MAX_LOG_STD))
        kl = gaussian_kl(q, Gaussian(jnp.zeros_like(mean), jnp.zeros_like(mean)))
        # Held-out images are encoded to the mean, so that their codes are always the same.
        z = mean
        if keys is not None:
            noise = jax.vmap(partial(jax.random.normal, shape=mean.shape[1:], dtype=mean.dtype))(keys)
            z = q.sample(noise)
        return Coded(z, mean, self.weight * kl.mean(range(1, kl.ndim)), {})

    def decode(self, stats: Stats, codes: Array) -> Array:
        return codes

    def draw(self, grid: tuple[int, ...], key: Key) -> Array:
        return jax.random.normal(key, (*grid, self.size))

    def tiny(self) -> KL:
        return KL(2, self.weight)


@dataclass(frozen=True)
class Fixed(Bottleneck):
    """Uses the encoder's outputs as the codes. For an encoder without parameters, such as the log-mels of a vocoder."""

    size: int = 40
    """Number of the encoder's outputs for each position of the grid."""

    def __post_init__(self):
        check_positive(size=self.size)

    @property
    def inputs(self) -> int:
        return self.size

    @property
    def channels(self) -> int:
        return self.size

    def feature(self, grid: tuple[int, ...], axes: tuple[str, ...]) -> Feature:
        return Feature((*grid, self.size), axes=(*axes, "channel"))

    def encode(self, stats: Stats, h: Array, keys: Key | None, batch: BatchFacts | None) -> Coded:
        return Coded(h, h, jnp.zeros(len(h), h.dtype), {})

    def decode(self, stats: Stats, codes: Array) -> Array:
        return codes

    def draw(self, grid: tuple[int, ...], key: Key) -> Array:
        return jax.random.normal(key, (*grid, self.size))

    def tiny(self) -> Fixed:
        # The encoder decides the size.
        return self
