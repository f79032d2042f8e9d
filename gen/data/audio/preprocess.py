"""Converts between 16-bit samples and the floats that a model sees."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gen.core import Array, Batch, Key
from gen.data.audio.augment import Augmentation, augment

LEVELS = 2**15
"""The integer sample of amplitude 1. Batches are sent to the device as int16, which has half of the bytes of float32,
and is exact for files of at most 16 bits."""


def to_integers(x: np.ndarray) -> np.ndarray:
    """Maps floats in [-1, 1] to int16, by rounding. Louder samples are clipped."""
    # 16-bit integers have one value less above 0 than below.
    return np.rint(np.clip(x * LEVELS, -LEVELS, LEVELS - 1)).astype(np.int16)


def to_float(x: ArrayLike) -> Array:
    """Returns int16 samples as float32 in [-1, 1)."""
    return jnp.asarray(x, jnp.float32) / LEVELS


def preprocess(batch: Batch, key: Key, training: bool, *, augmentation: Augmentation, rate: int) -> Batch:
    """Returns the batch with its "audio", int16 [B, T, C], as float32 in [-1, 1]. It is augmented if `training`.

    rate: samples per second.
    """
    x = to_float(batch["audio"])
    if training and augmentation != Augmentation():
        x = augment(x, augmentation, rate, key, batch["row"])
    return {**batch, "audio": x}
