"""Bottlenecks of tokenizers: they turn the encoder's outputs into codes. A config names one: `bottleneck=FSQ((8, 5, 5, 5))`.

A bottleneck takes the encoder's outputs h [B, *grid, inputs]. It returns codes, which are stored and modelled, and vectors z
[B, *grid, channels], which the decoder reads. If the codes are tokens, its base class is `Quantizer`
(gen/families/tokenizer/quantizers.py).

A bottleneck has no trained parameters. Its `Stats`, such as a codebook of moving averages, belong to State.stats.
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
"""{name: array} of statistics that a bottleneck estimates from the training batches. {}: it has none."""


class Coded(NamedTuple):
    """Output of a bottleneck for B examples."""

    z: Array
    """[B, *grid, channels]. Vectors for the decoder. Gradients pass through them to the encoder."""
    codes: Array
    """Tokens int32 [B, *grid] or [B, *grid, books], or latents [B, *grid, channels]. `decode` turns them into z."""
    loss: Array
    """[B]. Loss term of each example."""
    seen: Stats
    """Means over the examples of this device, from which `learn` updates the statistics."""


class BatchFacts(NamedTuple):
    """Facts about a global training batch, for `encode` and `learn`. All but `row` are the same on every device."""

    key: Key
    """Of the step."""
    row: Array
    """int32 [B]. Positions of this device's examples in the global batch."""
    size: int
    """Number of examples in the global batch."""


@dataclass(frozen=True)
class Bottleneck:
    """A map from the encoder's outputs to codes, and from codes to the decoder's inputs. Subclass it to add one."""

    @property
    def inputs(self) -> int:
        """Number of the encoder's outputs for each place of the grid."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Number of the decoder's inputs for each place of the grid."""
        raise NotImplementedError

    def feature(self, grid: tuple[int, ...], axes: tuple[str, ...]) -> Feature:
        """Returns the feature of the codes of one example. axes: the name of each axis of the grid."""
        raise NotImplementedError

    def begin(self, key: Key, dtype: DTypeLike) -> Stats:
        """Returns the statistics of step 0."""
        return {}

    def encode(self, stats: Stats, h: Array, keys: Key | None, batch: BatchFacts | None) -> Coded:
        """Returns the codes of h [B, *grid, inputs].

        keys: [B], for the noise of training. None: no noise. batch: given in training, where `Coded.seen` is needed.
        """
        raise NotImplementedError

    def decode(self, stats: Stats, codes: Array) -> Array:
        """Returns z [B, *grid, channels] of codes."""
        raise NotImplementedError

    def draw(self, grid: tuple[int, ...], key: Key) -> Array:
        """Draws random codes of one example, [*grid, ...]. A model of the codes would draw better ones."""
        raise NotImplementedError

    def learn(self, stats: Stats, seen: Stats, batch: BatchFacts) -> Stats:
        """Returns the statistics after a training step. seen: means of `Coded.seen` over the global batch."""
        return stats

    def tiny(self) -> Bottleneck:
        """Returns the same kind with the smallest sizes, for tests."""
        raise NotImplementedError


MAX_LOG_STD = 10.0
"""Bound on the log of the standard deviation of a latent, whose exp must not overflow."""


@dataclass(frozen=True)
class KL(Bottleneck):
    """Continuous latents: a Gaussian with a small penalty. Rombach et al. 2022, section 3.1 and appendix G.

    The codes are the means.
    """

    size: int = 4
    """Numbers in the latent of each place."""
    weight: float = 1e-3
    """Weight of the KL to N(0, 1), in nats per number of the latent. A small weight is enough to keep latents near 0: they need not
    follow the prior, because another model learns their distribution."""

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
    """Takes the encoder's outputs as the codes. For an encoder without parameters, such as the log-mels of a vocoder."""

    size: int = 40
    """Number of the encoder's outputs for each place."""

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
