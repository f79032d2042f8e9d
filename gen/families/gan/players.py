"""The two networks of a GAN, the generator G(z) and the discriminator D(x), as pure functions of parameters and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from gen import axis
from gen.core import Array, Key, Params
from gen.families import labels
from gen.families.gan.augment import Augmentation
from gen.networks.discriminator import Discriminator
from gen.networks.layers import MOMENTUM

STANDING_SAMPLES = 1024
"""Number of images from which `GeneratorModel.standing_statistics` estimates the moments of G's batch normalizations."""

Stats = dict[str, Params]
"""Values that training updates without gradients. "generator" and "discriminator": statistics of the network's
normalizations, such as running moments, if it has any. "augment": strength of the augmentation, float32 [], if images
are augmented."""


class Scored(NamedTuple):
    """Output of D for a batch of B images. A pack is a group of `pack` neighbouring images with one joint score."""

    scores: Array
    """[B / pack]. High for images that look real."""
    features: Array
    """[B / pack, F]. Outputs of D's last hidden layer, from which its last layer computes the scores."""
    stats: Stats
    """The statistics after this batch."""


class Examples(NamedTuple):
    """A batch of real images, in the form that the training of G and D reads."""

    image: Array
    """[B, H, W, C] in [-1, 1]."""
    label: Array | None
    """[B, classes] one-hot. None: the model is unconditional."""
    row: Array
    """int32 [B]. Positions in the global batch."""


@dataclass(frozen=True)
class GeneratorModel:
    """G, which makes images from latents."""

    network: nn.Module
    latent: int
    """Dimensions of z."""
    classes: int | None
    """Number of classes if the model is conditional. None: unconditional."""
    dtype: DTypeLike
    """Dtype of latents and images."""

    def init(self, key: Key) -> tuple[Params, Stats]:
        """Returns G's parameters, and its statistics {"generator": ...}, or {} if it has none, at step 0."""
        z, label = jnp.zeros((1, self.latent)), None if self.classes is None else jnp.zeros((1, self.classes))
        variables = self.network.init(key, z, label, False)
        stats: Stats = {"generator": variables["batch_stats"]} if "batch_stats" in variables else {}
        return variables["params"], stats

    def one_hot(self, label: Array | None) -> Array | None:
        """Returns labels int [B] as one-hot vectors [B, classes], or None if there are none or the model is unconditional."""
        if label is None or self.classes is None:
            return None
        return jax.nn.one_hot(label, self.classes, dtype=self.dtype)

    def latents(self, key: Key, row: Array, truncation: float | None = None) -> Array:
        """Draws latents z ~ N(0, I), [B, latent]. truncation: draw only values in [-truncation, truncation]. None: all values.

        row: int32 [B], positions in the global batch, or in sampling the indices of the samples. Each latent depends on
        key and its row alone.
        """

        # Each latent has its own key, so sample i does not depend on the number of samples or devices.
        def draw(key: Key) -> Array:
            if truncation is None:
                return jax.random.normal(key, (self.latent,), self.dtype)
            return jax.random.truncated_normal(key, -truncation, truncation, (self.latent,), self.dtype)

        return axis.per_example(draw, key, row)

    def make(self, g: Params, stats: Stats, z: Array, label: Array | None, train: bool = True) -> tuple[Array, Stats]:
        """Returns G(z), images [B, H, W, C] in [-1, 1], and the statistics after this batch.

        g: G's parameters. z: [B, latent]. label: one-hot [B, classes], or None for an unconditional model.
        train: whether batch normalization uses the moments of this batch. Otherwise it uses their running averages.
        """
        variables = {"params": g, "batch_stats": stats.get("generator", {})}
        images, new = self.network.apply(variables, z, label, train, mutable=["batch_stats"])
        return images.astype(self.dtype), _with_new(stats, "generator", new)

    def standing_statistics(self, g: Params, stats: Stats) -> Stats:
        """Returns the statistics with new moments of G's batch normalizations, estimated on STANDING_SAMPLES images.

        g: parameters of G, such as their moving average, which needs this: the running moments of training belong to
        the raw parameters. If G has no batch normalization, `stats` is returned unchanged. Brock et al. 2019 ("standing
        statistics").
        """
        if "generator" not in stats:
            return stats
        zero = stats | {"generator": jax.tree.map(jnp.zeros_like, stats["generator"])}
        label = self.one_hot(labels.labels_to_generate(STANDING_SAMPLES, None, self.classes))
        # A fixed key: the same parameters must get the same statistics each time.
        z = self.latents(jax.random.key(0), jnp.arange(STANDING_SAMPLES))
        # Batch normalization averages over the axis "data", which exists only in a mapped function.
        on_one_device = jax.vmap(self.make, in_axes=None, out_axes=None, axis_name="data", axis_size=1)
        _, new = on_one_device(g, zero, z, label)
        # A running average that starts at 0 holds (1 - MOMENTUM) times the moment after one batch.
        return new | {"generator": jax.tree.map(lambda m: m / (1 - MOMENTUM), new["generator"])}


@dataclass(frozen=True)
class DiscriminatorModel:
    """D, which gives real and generated images their scores."""

    network: Discriminator
    shape: tuple[int, ...]
    """Shape of an image: height, width, channels."""
    classes: int | None
    """Number of classes if the model is conditional. None: unconditional."""
    pack: int
    """Number of images that get one joint score; their channels are concatenated (PacGAN, Lin et al. 2018)."""
    augment: Augmentation | None
    """Random transformation of every image that D sees in training. None: no transformation."""
    dtype: DTypeLike
    """Dtype of scores and features."""

    def init(self, key: Key) -> tuple[Params, Stats]:
        """Returns D's parameters, and its statistics ("discriminator" and "augment", if it has them), at step 0."""
        label = None if self.classes is None else jnp.zeros((1, self.classes))
        height, width, channels = self.shape
        x = jnp.zeros((1, height, width, channels * self.pack))
        variables = self.network.init(key, x, label, None, False)
        stats: Stats = {"discriminator": variables["batch_stats"]} if "batch_stats" in variables else {}
        if self.augment:
            stats["augment"] = self.augment.start()
        return variables["params"], stats

    def score(
        self,
        d: Params,
        stats: Stats,
        x: Array,
        label: Array | None,
        key: Key | None,
        row: Array,
        weight: Array | None = None,
    ) -> Scored:
        """Returns D's scores and features of a batch of images, and the statistics after this batch.

        d: D's parameters. x: [B, H, W, C] in [-1, 1]. label: one-hot [B, classes], or None if unconditional.
        key: given in training, for augmentation and dropout. None: evaluation, with running averages in normalizations,
            and without augmentation and dropout.
        row: int32 [B], positions in the global batch. The noise of an image depends on (key, row) alone.
        weight: [B / pack], 0 for packs of padding, so that they do not change the scores of others. None: no padding.
        """
        keys = None
        if key is not None:
            augment_key, dropout_key = jax.random.split(key)
            if self.augment:
                x = self.augment.apply(x, augment_key, row, stats["augment"])
            # One key per pack: the first row of the pack names it.
            keys = axis.example_keys(dropout_key, row[:: self.pack])
        # Spectral and batch normalization change their statistics only in training.
        variables = {"params": d, "batch_stats": stats.get("discriminator", {})}
        inputs = pack_images(x, self.pack), label, keys, key is not None, weight
        (scores, features), new = self.network.apply(variables, *inputs, mutable=["batch_stats"])
        stats = _with_new(stats, "discriminator", new)
        return Scored(scores.astype(self.dtype), features.astype(self.dtype), stats)

    def scores_alone(self) -> bool:
        """Returns whether, in evaluation, the score of an image depends on this image alone."""
        return self.pack == 1 and not self.network.arch.minibatch


def pack_images(x: Array, pack: int) -> Array:
    """Concatenates the channels of each `pack` neighbouring images: [B, H, W, C] -> [B / pack, H, W, pack * C]."""
    b, h, w, c = x.shape
    return x.reshape(b // pack, pack, h, w, c).transpose(0, 2, 3, 1, 4).reshape(b // pack, h, w, pack * c)


def _with_new(stats: Stats, player: str, new: Params) -> Stats:
    """Returns `stats` with the entry of one network replaced by new statistics. A network without statistics has no entry, and `stats` is returned unchanged.

    player: key of the entry, "generator" or "discriminator". new: {"batch_stats": ...}, as Flax returns it.
    """
    return stats | {player: new["batch_stats"]} if player in stats else stats
