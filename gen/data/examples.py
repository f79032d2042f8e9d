"""Batches of examples that can be read by position: shuffled for training, in order for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from gen.core import HostBatch
from gen.data.order import Shuffle

Read = Callable[[str, np.ndarray], HostBatch]
"""Reads examples: (split, positions in the split, int64 [n]) -> {feature: array [n, ...]}."""


@dataclass(frozen=True)
class Examples:
    """The examples of three splits. `batch` and `evaluation` are the functions of the same names in gen.core.Dataset.

    Every batch has the features that `read` returns, and "row" int32 [n] (position in the batch of all hosts, or in the
    split during evaluation), "index" int32 [n] (position in the split), and "weight" float32 [n] (0 for padding,
    otherwise 1).
    """

    sizes: dict[str, int]
    """Number of examples in "train", "validation" and "test"."""
    read: Read
    """Reads examples of a split by their positions."""
    shuffle: Shuffle
    """Random order of the training examples. Training reads the endless sequence of all epochs, one after the other.
    (seed, places in this sequence) -> positions in the training split."""
    batch_size: int
    """Examples in a training batch, over all devices and hosts."""

    def batch(self, seed: int, step: int, rows: range) -> HostBatch:
        """Returns these rows of the training batch of a step. It is a pure function of its arguments.

        step: counted from 0. rows: rows in [0, batch_size), such as those of one host.
        """
        # Only the requested rows are read, so each host reads its part of a batch without communication.
        index = self.shuffle(seed, self.places(step, rows))
        return self.read("train", index) | number_rows(np.asarray(rows), index, np.ones(len(rows)))

    def places(self, step: int, rows: range) -> range:
        """Returns the places of these rows in the endless sequence of training examples: step * batch_size + row."""
        first = step * self.batch_size
        return range(first + rows.start, first + rows.stop, rows.step)

    def count(self, split: str) -> int:
        """Returns the number of examples of a split that `evaluation` yields, without padding."""
        return self.sizes[split]

    def evaluation(self, split: str, batch_size: int, rows: range | None = None) -> Iterator[HostBatch]:
        """Yields a split in order, in batches of `batch_size`.

        rows: rows of each batch to read, in [0, batch_size). None: all. The last batch is padded with example 0, whose weight is 0.
        """
        n = self.count(split)
        columns = np.arange(batch_size) if rows is None else np.asarray(rows)
        for start in range(0, n, batch_size):
            row = start + columns
            # All batches have one shape, so that one compiled program takes them: example 0 is the padding.
            yield self.read(split, np.where(row < n, row, 0)) | number_rows(row, row, row < n)


def number_rows(row: np.ndarray, index: np.ndarray, weight: np.ndarray) -> HostBatch:
    """Returns {"row": int32, "index": int32, "weight": float32}, [n] each: the entries of a batch besides its features.

    `Examples` explains them.
    """
    return {"row": row.astype(np.int32), "index": index.astype(np.int32), "weight": weight.astype(np.float32)}
