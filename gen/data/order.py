"""Random orders of the training examples. The example at any place can be computed directly, so there is no iterator state to save."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

Shuffle = Callable[[int, range], np.ndarray]
"""(seed, places in the endless sequence of training examples) -> positions in the training split, int64 [n].

The sequence has all epochs, one after the other. With N training examples, place p is in epoch p // N. Each epoch is
another permutation of the split."""


def permute(n: int) -> Shuffle:
    """Returns a Shuffle for n examples. The permutation of each epoch is drawn by numpy's default_rng([seed, epoch]).

    It holds up to two permutations in memory: 16 n bytes.
    """

    # A batch may begin in one epoch and end in the next, so two permutations are kept.
    @lru_cache(maxsize=2)
    def permutation(seed: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([seed, epoch]).permutation(n)

    def shuffle(seed: int, places: range) -> np.ndarray:
        # Place p is position p % n of epoch p // n, before that epoch is permuted.
        epoch, position = np.divmod(np.asarray(places, np.int64), n)
        for e in np.unique(epoch):
            position[epoch == e] = permutation(seed, int(e))[position[epoch == e]]
        return position

    return shuffle


def permute_by_grain(n: int) -> Shuffle:
    """Returns a Shuffle for n examples that uses Grain's index shuffle.

    It holds no permutation in memory, so it suits data sets that are too large for `permute`.
    """
    # Grain computes each position from its index, so no permutation is stored.
    import grain

    @lru_cache(maxsize=2)
    def order(seed: int) -> grain.MapDataset[int]:
        return grain.MapDataset.range(n).seed(seed).shuffle().repeat()

    def shuffle(seed: int, places: range) -> np.ndarray:
        return np.array([order(seed)[place] for place in places], np.int64)

    return shuffle
