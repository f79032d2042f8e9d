"""Feature extractors: the vectors by which metrics compare images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gen.core import Array


class Features(NamedTuple):
    """A function that maps images to feature vectors, and its description, which is stored with the scores."""

    extract: Callable[[Array], tuple[Array, Array | None]]
    """images [B, H, W, C] float32 in [-1, 1] -> (features [B, D] float32, class probabilities [B, K] or None).
    Networks are compiled."""
    protocol: Mapping[str, str | float]
    """{"features": name}. Networks also have "weights" (SHA-256 of the weights), "resize" (how images are resized to
    the network's input), and other entries."""


def pixels() -> Features:
    """Returns the pixels themselves as features, with D = H * W * C and no class probabilities."""
    return Features(_flatten, {"features": "pixels"})


def _flatten(images: Array) -> tuple[Array, None]:
    return images.reshape(images.shape[0], -1), None
