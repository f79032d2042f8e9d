"""Windows of one length, cut out of recordings of any length."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gen.core import HostBatch
from gen.data.audio.sources import Source

Long = Literal["windows", "start"]


@dataclass(frozen=True)
class Windows:
    """The windows of all recordings, in the order of the recordings. A window ends with silence if its recording is too short."""

    source: Source
    rate: int
    samples: int
    """Number of samples of a window, for each channel."""
    channels: int
    first: np.ndarray
    """Position of the first window of each recording, then the total number of windows, int64 [N + 1]."""

    def expand(self, recordings: np.ndarray) -> np.ndarray:
        """Returns the positions of all windows of these recordings, int64, in the order of `recordings`, int64 [n]."""
        return np.concatenate([np.arange(int(self.first[i]), int(self.first[i + 1])) for i in recordings.tolist()])

    def read(self, positions: np.ndarray) -> HostBatch:
        """Decodes the windows at these positions [n], in threads.

        Returns {"audio": int16 [n, samples, channels], "label": int32 [n]}. Raises: UserError if a recording can't be decoded.
        """
        recording = np.searchsorted(self.first, positions, side="right") - 1
        audio = np.zeros((len(positions), self.samples, self.channels), np.int16)
        # Groups the windows by their recordings, so that each recording is decoded once.
        order = np.argsort(recording, kind="stable")
        edges = np.flatnonzero(np.diff(recording[order])) + 1

        def fill(rows: np.ndarray) -> None:
            i = int(recording[rows[0]])
            x = self.source.decode(i, self.rate, self.channels)
            for row in rows.tolist():
                start = int(positions[row] - self.first[i]) * self.samples
                piece = x[start : start + self.samples]
                audio[row, : len(piece)] = piece

        with ThreadPoolExecutor() as pool:
            # list() waits for the threads and raises what they raised.
            list(pool.map(fill, np.split(order, edges) if len(order) else []))
        return {"audio": audio, "label": self.source.labels[recording]}


def cut(source: Source, rate: int, samples: int, channels: int, long: Long) -> Windows:
    """Cuts the recordings of a source into windows.

    samples: length of a window, per channel, at `rate` samples per second. long: "windows" cuts consecutive windows.
    The rest of a recording becomes one more window, filled up with silence, if it
        is at least half a window long; otherwise it is left out. "start" takes only the first window of each recording.
    """
    # Lengths after resampling. The decoded recording may be one sample longer or shorter.
    lengths = np.ceil(source.seconds * rate - 1e-6).astype(np.int64)
    counts = np.ones_like(lengths) if long == "start" else np.maximum(1, (lengths + samples // 2) // samples)
    return Windows(source, rate, samples, channels, np.concatenate([[0], np.cumsum(counts)]))
