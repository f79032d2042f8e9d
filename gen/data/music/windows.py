"""Windows of one length, cut out of pieces of any length."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gen.core import HostBatch
from gen.data.music.roll import REST, shift_limits, span
from gen.data.music.sources import Source


@dataclass(frozen=True)
class Windows:
    """The windows of all pieces, one after the other. If a piece ends inside a window, the rest of the window is
    padding: rests that do not count.
    """

    tokens: np.ndarray
    """Rolls of the windows, int16 [W, frames, voices]."""
    frames: np.ndarray
    """Number of frames of each window without padding, int32 [W]."""
    limits: np.ndarray
    """Lowest and highest transposition that training may draw for each window, in semitones, int32 [W, 2]."""
    labels: np.ndarray
    """Class of each window, int32 [W]."""
    first: np.ndarray
    """Position of the first window of each piece, then the total number of windows, int64 [N + 1]."""

    def expand(self, pieces: np.ndarray) -> np.ndarray:
        """Returns the positions of all windows of these pieces, int64, in the order of `pieces`, int64 [n]."""
        return np.concatenate([np.arange(int(self.first[i]), int(self.first[i + 1])) for i in pieces.tolist()])

    def read(self, positions: np.ndarray) -> HostBatch:
        """Returns {"tokens": int32 [n, frames, voices], "frames", "label": int32 [n], "limits": int32 [n, 2]} at these positions."""
        at = positions
        tokens = self.tokens[at].astype(np.int32)
        return {"tokens": tokens, "frames": self.frames[at], "limits": self.limits[at], "label": self.labels[at]}


def cut(source: Source, frames: int, training: np.ndarray, semitones: int) -> Windows:
    """Returns the consecutive windows of each piece of a source. The last window of a piece is padded with rests.

    frames: length of a window. training: positions of the training pieces. Transpositions keep each voice in the range
    that it has in these pieces. semitones: largest transposition, up or down.
    """
    # Consecutive and not overlapping, so that each token counts once.
    rows, lengths, first = [], [], [0]
    for piece in source.pieces:
        for start in range(0, len(piece), frames):
            part = piece[start : start + frames]
            rows.append(np.pad(part, ((0, frames - len(part)), (0, 0)), constant_values=REST))
            lengths.append(len(part))
        first.append(len(rows))
    # The test split must not decide how training pieces are moved.
    allowed = span([source.pieces[i] for i in training.tolist()])
    limits = np.array([shift_limits(piece, allowed, semitones) for piece in source.pieces], np.int32)
    # All windows of a piece share its label and its limits.
    repeats = np.diff(first)
    return Windows(
        tokens=np.stack(rows),
        frames=np.array(lengths, np.int32),
        limits=limits.repeat(repeats, axis=0),
        labels=source.labels.repeat(repeats),
        first=np.array(first, np.int64),
    )
