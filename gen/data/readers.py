"""Read decoded examples by position: in a source, in memory, or in a split.

A source holds the examples of all splits, and its positions count through all splits.
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
"""Positions in the source, int64 [n] -> {feature: array [n, ...]}."""


class Reader(NamedTuple):
    """Functions and facts to read decoded examples by their positions in the source."""

    read: Decode
    """Positions int64 [n] -> {feature: [n, ...], "label": int32 [n]}."""
    content: str
    """Digest of the examples."""
    shuffle: Shuffle
    """Random order of the training examples. It differs between data in memory and larger data."""
    older_content: tuple[str, ...] = ()
    """Digests that older versions of gen computed for the same examples, from names and sizes alone."""


@dataclass(frozen=True)
class Held:
    """Decoded examples in memory, or mapped from the cache."""

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
    """Decodes the examples at the positions `used` (sorted), or maps them from the cache if they were decoded before.

    key: cache key, a hash of everything on which the decoded examples depend. None: they are not cached. what: description of the
    examples, for messages. whole: compare every byte of the cache with its hash, not only a sample.
    """

    def make() -> Arrays:
        arrays = decode(used)
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
    """Whether the examples have labels."""

    def read(self, split: str, index: np.ndarray) -> HostBatch:
        """Returns {feature: [n, ...]}, and "label" int32 [n] if the examples have labels. index: positions in the split, int64 [n]."""
        examples = self.read_source(self.splits[split][index])
        return {name: x for name, x in examples.items() if self.labels or name != "label"}
