"""What metrics compare images by: a network's features of them, or their pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from gen.core import Array


class Features(NamedTuple):
    """A map from images to vectors, and what a number's protocol says of it."""

    extract: Callable[[Array], tuple[Array, Array | None]]
    """images [B, H, W, C] float32 in [-1, 1] -> features [B, D] float32, and class probabilities [B, K] or None. Compiled."""
    protocol: Mapping[str, Any]
    """{"features": name, "weights": SHA-256 of them, "resize": how images reach the network's size}."""


def pixels() -> Features:
    """The pixels themselves: D = H W C."""
    return Features(lambda x: (x.reshape(x.shape[0], -1), None), {"features": "pixels"})
