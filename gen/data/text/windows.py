"""Makes examples that are windows of a token stream: all texts of a split as one sequence of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from gen.core import HostBatch
from gen.data.examples import Examples, number_rows
from gen.data.order import permute, permute_by_grain
from gen.data.text.streams import Streams
from gen.errors import UserError

MAX_PERMUTED = 2**24  # largest number of windows whose permutation is held in memory: 128 MiB


def make_windows(streams: Streams, length: int, stride: int | None, batch_size: int) -> Examples:
    """Returns examples that are windows of length + 1 tokens. In training, all tokens of a window but the first are targets.

    Training: the windows of an epoch follow each other without a gap, and are read in random order. The first window starts at
    a random position in [0, length), the phase. Phase and order are drawn from (seed, epoch). So in each epoch, each token is a
    target once, except less than a window of tokens at either end.

    Evaluation: each token but the first of the split is a target exactly once. Without a stride the windows are
    disjoint, as in nanoGPT. With a stride, windows begin `stride` tokens apart, and the targets of a window are its
    last `stride` tokens. So each target has at least length - stride tokens before it, except in the first window.

    Raises: UserError if there are fewer than length + 1 tokens to train on.
    """
    count = len(streams.tokens["train"])
    if count <= length:
        raise UserError(
            f"--data.length {length} needs {length + 1} tokens to train on, and there are {count}:"
            " choose a shorter length, or more text"
        )
    # n windows need n * length + 1 tokens. The phase can move all windows by the number of the other tokens.
    n = max(1, (count - length) // length)
    layout = Layout(streams, length, stride or length, phases=min(length, count - n * length))
    return Windows(
        sizes={"train": n, "validation": layout.count("validation"), "test": layout.count("test")},
        read=layout.read_held_out,
        shuffle=(permute if n <= MAX_PERMUTED else permute_by_grain)(n),
        batch_size=batch_size,
        layout=layout,
    )


@dataclass(frozen=True)
class Layout:
    """Computes the positions of windows in the token streams, and reads them."""

    streams: Streams
    length: int
    """Number of tokens in a window, minus 1 because the first token is not predicted."""
    stride: int
    """Number of tokens from the start of an evaluation window to the start of the next."""
    phases: int
    """Number of possible phases. The phase is the position of the first training window of an epoch in the stream."""

    def count(self, split: str) -> int:
        """Returns the number of evaluation windows of a split. Each of its tokens but the first is a target once."""
        # The first window predicts `length` tokens, and each later one `stride` more.
        later = len(self.streams.tokens[split]) - 1 - self.length
        return 1 + max(0, -(-later // self.stride))

    def read_held_out(self, split: str, index: np.ndarray) -> HostBatch:
        """Returns evaluation windows: {"tokens", "counted", "bytes"}, see `Streams.examples`.

        index: numbers of the windows, int64 [n]. Window k starts at token k * stride of the split.
        """
        stream, column, k = self.streams.tokens[split], np.arange(self.length + 1), index[:, None]
        place = k * self.stride + column
        # The last window may reach over the end of the stream. It is filled with end tokens that are not counted.
        inside = place < len(stream)
        found = np.where(inside, stream[np.minimum(place, len(stream) - 1)], self.streams.end)
        # In the first window all tokens but the first are targets, in later ones the last `stride` tokens.
        counted = inside & (column > np.where(k == 0, 0, self.length - self.stride))
        return self.streams.examples(found, counted)

    def read_training(self, start: np.ndarray) -> HostBatch:
        """Returns training windows: {"tokens", "counted", "bytes"}, see `Streams.examples`.

        start: positions of their first tokens in the stream, int64 [n].
        """
        column = np.arange(self.length + 1)
        counted = np.broadcast_to(column > 0, (len(start), self.length + 1))
        return self.streams.examples(self.streams.tokens["train"][start[:, None] + column], counted)


@dataclass(frozen=True)
class Windows(Examples):
    """Examples that are windows. In each epoch, the first training window starts at a random position, the phase."""

    layout: Layout

    def batch(self, seed: int, step: int, rows: range) -> HostBatch:
        """Returns these rows of the training batch of a step, as `Examples.batch` does. "index" numbers the windows."""
        places, n = self.places(step, rows), self.sizes["train"]
        index = self.shuffle(seed, places)
        phase = [draw_phase(seed, place // n, self.layout.phases) for place in places]
        found = self.layout.read_training(np.array(phase, np.int64) + index * self.layout.length)
        return found | number_rows(np.asarray(rows), index, np.ones(len(rows)))

    def count(self, split: str) -> int:
        """Returns the number of windows of a split in an evaluation.

        For the training split it can be larger than in an epoch, because an epoch leaves out tokens at both ends.
        """
        return self.layout.count(split)


@lru_cache(maxsize=4)
def draw_phase(seed: int, epoch: int, phases: int) -> int:
    """Draws the phase of an epoch: the position of its first training window in the stream, in [0, phases)."""
    # The 1 keeps this draw independent of the permutation, which is drawn from [seed, epoch].
    return int(np.random.default_rng([seed, epoch, 1]).integers(phases))
