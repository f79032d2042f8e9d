"""A generator G(z) and a discriminator D(x) as pure functions of their parameters and statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from gen import axis
from gen.core import Array, Key, Params
from gen.families import labels
from gen.families.gan.augment import Augmentation
from gen.networks.discriminator import Discriminator
from gen.networks.layers import MOMENTUM

STANDING = 1024  # samples that standing statistics are taken from


@dataclass(frozen=True)
class Players:
    """params: {"generator": ..., "discriminator": ...}; stats: those of either that has any, and "augment", the strength."""

    generator: nn.Module
    discriminator: Discriminator
    shape: tuple[int, ...]
    latent: int
    classes: int | None
    """Of a conditional model."""
    pack: int
    augment: Augmentation | None
    dtype: Any
    """Of latents, images and scores."""

    def init(self, key: Key) -> tuple[Params, dict[str, Any]]:
        """Parameters and statistics."""
        g_key, d_key = jax.random.split(key)
        z, label = jnp.zeros((1, self.latent)), None if self.classes is None else jnp.zeros((1, self.classes))
        height, width, channels = self.shape
        x = jnp.zeros((1, height, width, channels * self.pack))
        made: dict[str, Any] = {
            "generator": self.generator.init(g_key, z, label, False),
            "discriminator": self.discriminator.init(d_key, x, label, None, False),
        }
        stats = {name: variables["batch_stats"] for name, variables in made.items() if "batch_stats" in variables}
        if self.augment:
            stats["augment"] = self.augment.start()
        return {name: variables["params"] for name, variables in made.items()}, stats

    def one_hot(self, label: Array | None) -> Array | None:
        """[B] -> [B, classes]; None of an unconditional model, whatever the label."""
        return None if label is None or self.classes is None else jax.nn.one_hot(label, self.classes, dtype=self.dtype)

    def latents(self, key: Key, row: Array, truncation: float | None = None) -> Array:
        """z ~ N(0, I) [B, latent], each example's its own; with `truncation`, from the part within that distance of 0."""
        if truncation is None:
            return axis.per_example(lambda k: jax.random.normal(k, (self.latent,), self.dtype), key, row)
        bounded = lambda k: jax.random.truncated_normal(k, -truncation, truncation, (self.latent,), self.dtype)
        return axis.per_example(bounded, key, row)

    def make(self, g: Params, stats: Any, z: Array, label: Array | None, train: bool = True) -> tuple[Array, Any]:
        """G(z): images [B, H, W, C], and the statistics after it."""
        variables = {"params": g, "batch_stats": stats.get("generator", {})}
        images: Any
        if not train:
            images = self.generator.apply(variables, z, label, False)
            return images.astype(self.dtype), stats
        images, new = self.generator.apply(variables, z, label, True, mutable=["batch_stats"])
        return images.astype(self.dtype), _updated(stats, "generator", new)

    def judge(
        self, d: Params, stats: Any, x: Array, label: Array | None, key: Key | None, row: Array
    ) -> tuple[Array, Array, Any]:
        """D(T(x)), T the augmentation: scores [B / pack], features, and the statistics after it.

        Without a key as when not training: no augmentation, no dropout, running statistics.
        """
        keys = None
        if key is not None:
            augment_key, dropout_key = jax.random.split(key)
            if self.augment:
                x = self.augment.apply(x, augment_key, row, stats["augment"])
            keys = jax.vmap(lambda r: jax.random.fold_in(dropout_key, r))(row[:: self.pack])
        variables = {"params": d, "batch_stats": stats.get("discriminator", {})}
        given = pack_images(x, self.pack), label, keys, key is not None
        (scores, features), new = self.discriminator.apply(variables, *given, mutable=["batch_stats"])
        return scores.astype(self.dtype), features.astype(self.dtype), _updated(stats, "discriminator", new)

    def standing(self, g: Params, stats: Any) -> Any:
        """The statistics with those of G's batch normalizations taken anew, from one large batch of samples: averaged weights
        don't have the running averages of the raw ones (standing statistics, Brock et al. 2019)."""
        if "generator" not in stats:
            return stats
        zero = stats | {"generator": jax.tree.map(jnp.zeros_like, stats["generator"])}
        label = self.one_hot(labels.labels_to_generate(STANDING, None, self.classes))
        z = self.latents(jax.random.key(0), jnp.arange(STANDING))
        alone = jax.vmap(self.make, in_axes=None, out_axes=None, axis_name="data", axis_size=1)
        _, new = alone(g, zero, z, label)
        return new | {"generator": jax.tree.map(lambda m: m / (1 - MOMENTUM), new["generator"])}


def pack_images(x: Array, pack: int) -> Array:
    """[B, H, W, C] -> [B / pack, H, W, pack C], neighbours side by side."""
    b, h, w, c = x.shape
    return x.reshape(b // pack, pack, h, w, c).transpose(0, 2, 3, 1, 4).reshape(b // pack, h, w, pack * c)


def _updated(stats: Any, player: str, new: Any) -> Any:
    return stats | {player: new["batch_stats"]} if player in stats else stats
