"""Random orders of examples that are random access: no iterator state."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

Shuffle = Callable[[int, range], np.ndarray]
"""(seed, places in an endless sequence) -> positions in the split; each epoch is another permutation of it."""


def permute(n: int) -> Shuffle:
    """A new permutation of [0, n) each epoch, drawn from numpy's default_rng([seed, epoch])."""

    @lru_cache(maxsize=2)  # a batch touches two epochs where they meet
    def permutation(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(n)

    def shuffle(seed: int, places: range) -> np.ndarray:
        epoch, position = np.divmod(np.asarray(places, np.int64), n)
        for e in np.unique(epoch):
            position[epoch == e] = permutation(seed, int(e))[position[epoch == e]]
        return position

    return shuffle


def permute_by_grain(n: int) -> Shuffle:
    """The same from Grain's index shuffle, which needs no memory: for sets too large to hold."""
    import grain

    @lru_cache(maxsize=2)
    def order(seed: int) -> grain.MapDataset[int]:
        return grain.MapDataset.range(n).seed(seed).shuffle().repeat()

    def shuffle(seed: int, places: range) -> np.ndarray:
        return np.array([order(seed)[place] for place in places], np.int64)

    return shuffle
