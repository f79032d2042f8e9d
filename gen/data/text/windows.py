"""Examples of a stream of tokens: windows of it, as functions of (seed, step, rows)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gen.core import HostBatch
from gen.data.order import permute, permute_by_grain
from gen.errors import UserError

HELD = 2**24  # places whose permutation is held in memory


class Examples(NamedTuple):
    """What a gen.core.Dataset makes its batches of."""

    sizes: dict[str, int]
    batch: Callable[[int, int, range], HostBatch]
    evaluation: Callable[..., Iterator[HostBatch]]


def windows(
    tokens: Mapping[str, np.ndarray], end: int, widths: np.ndarray, length: int, stride: int | None, batch_size: int
) -> Examples:
    """Windows of length + 1 tokens; of each all but the first are targets.

    Training: an epoch's windows follow each other from a phase in [0, length) on and come in an order of that epoch, both
    drawn from (seed, epoch): each token is a target once, but for less than a window at either end.
    Evaluation: every token but the split's first is a target once. Disjoint, as in nanoGPT; or with a stride, the last
    `stride` targets of each window, so that at least length - stride tokens come before each (but in the first window).

    tokens: [N] of each split; widths: bytes of each token, int32 [V].
    Raises: UserError for fewer than length + 1 tokens to train on.
    """
    train, column = tokens["train"], np.arange(length + 1)
    if len(train) <= length:
        raise UserError(
            f"--data.length {length} needs {length + 1} tokens to train on, and there are {len(train)}:"
            " choose a shorter one, or more text"
        )
    n = max(1, (len(train) - length) // length)
    phases = min(length, len(train) - n * length)
    shuffle = (permute if n <= HELD else permute_by_grain)(n)

    @lru_cache(maxsize=4)
    def phase(seed: int, epoch: int) -> int:
        return int(np.random.default_rng([seed, epoch, 1]).integers(phases))

    def batch(seed: int, step: int, rows: range) -> HostBatch:
        first = step * batch_size
        places = range(first + rows.start, first + rows.stop, rows.step)
        index = shuffle(seed, places)
        start = np.array([phase(seed, place // n) for place in places], np.int64) + index * length
        counted = np.broadcast_to(column > 0, (len(rows), length + 1))
        found = train[start[:, None] + column]
        return example(found, counted, widths) | numbered(np.asarray(rows), index, np.ones(len(rows)))

    step = stride or length
    count = lambda split: 1 + max(0, -(-(len(tokens[split]) - 1 - length) // step))

    def evaluation(split: str, batch_size: int, rows: range | None = None) -> Iterator[HostBatch]:
        stream, n = tokens[split], count(split)
        for start in range(0, n, batch_size):
            row = start + np.asarray(rows or range(batch_size))
            k = np.where(row < n, row, 0)[:, None]
            place = k * step + column
            there = place < len(stream)
            found = np.where(there, stream[np.minimum(place, len(stream) - 1)], end)
            counted = there & (column > np.where(k == 0, 0, length - step))
            yield example(found, counted, widths) | numbered(row, row, row < n)

    return Examples({"train": n, "validation": count("validation"), "test": count("test")}, batch, evaluation)


def example(tokens: np.ndarray, counted: np.ndarray, widths: np.ndarray) -> HostBatch:
    """{"tokens": int32 [B, T + 1], "counted": uint8 [B, T + 1], "bytes": int32 [B] that the counted ones stand for}."""
    bytes_ = np.where(counted, widths[tokens], 0).sum(1)
    return {"tokens": tokens.astype(np.int32), "counted": counted.astype(np.uint8), "bytes": bytes_.astype(np.int32)}


def numbered(row: np.ndarray, index: np.ndarray, weight: np.ndarray) -> HostBatch:
    return {"row": row.astype(np.int32), "index": index.astype(np.int32), "weight": weight.astype(np.float32)}
