"""Reads decoded examples, such as images or windows of sound, by their positions.

A source, such as a folder of images, holds the examples of all splits. A position in a source counts through all
splits. A position in a split counts through this split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gen.core import HostBatch
from gen.data.cache import Arrays, load_or_make
from gen.data.digest import sha256
from gen.data.order import Shuffle

Decode = Callable[[np.ndarray], HostBatch]
"""Reads and decodes examples: positions in the source, int64 [n] -> {feature: array [n, ...]}."""


class Reader(NamedTuple):
    """A function that reads decoded examples by their positions in the source, and their order and digest."""

    read: Decode
    """Positions in the source, int64 [n] -> {feature: array [n, ...], "label": int32 [n]}."""
    content: str
    """Digest of the examples, a part of the digest of the data set."""
    shuffle: Shuffle
    """Random order of the training examples: `permute` for data in memory, `permute_by_grain` for larger data."""
    older_content: tuple[str, ...] = ()
    """Values of `content` that older versions of gen computed for the same examples, from names and sizes of files."""


@dataclass(frozen=True)
class Held:
    """N decoded examples in memory, or memory-mapped from the cache."""

    used: np.ndarray
    """Positions in the source of the examples that are held, sorted, int64 [N]."""
    arrays: HostBatch
    """{feature: [N, ...]}."""
    content: str
    """SHA-256 of the arrays."""

    def read(self, positions: np.ndarray) -> HostBatch:
        """Returns the examples at these positions in the source. They must be among `used`."""
        at = np.searchsorted(self.used, positions)
        return {name: x[at] for name, x in self.arrays.items()}


def hold(decode: Decode, used: np.ndarray, key: str | None, what: str, whole: bool = False) -> Held:
    """Decodes examples and keeps them in memory, or maps them from the cache if they were decoded before.

    used: positions of the examples in the source, sorted, int64 [N]. key: cache key, a SHA-256 of everything on which
    the decoded examples depend. None: they are not cached. what: description of the examples, for messages. whole:
    compare every byte of the cache with its hash, not only a random sample.
    """

    def make() -> Arrays:
        arrays = decode(used)
        # The digest is cached too, so that cached examples need not be read to compute it.
        return arrays | {"digest": np.array(sha256(*arrays.values()))}

    arrays = make() if key is None else load_or_make(key, make, what, whole)
    examples = {name: x for name, x in arrays.items() if name != "digest"}
    return Held(used, examples, str(arrays["digest"]))


@dataclass(frozen=True)
class SplitReader:
    """Reads examples by their positions in a split."""

    splits: Mapping[str, np.ndarray]
    """{split: positions in the source, int64 [N]}."""
    read_source: Decode
    """Reads examples by their positions in the source."""
    labels: bool
    """Whether the examples have labels. If not, "label" is left out."""

    def read(self, split: str, index: np.ndarray) -> HostBatch:
        """Returns {feature: array [n, ...]}, with "label" int32 [n] if the examples have labels.

        index: positions in the split, int64 [n].
        """
        examples = self.read_source(self.splits[split][index])
        return {name: x for name, x in examples.items() if self.labels or name != "label"}
