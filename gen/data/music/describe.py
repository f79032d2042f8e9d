"""Describes a set of scores for the user: number and lengths of the pieces, splits, classes, windows and transpositions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from gen.data.images.describe import describe_classes
from gen.data.music.sources import Source
from gen.data.music.windows import Windows
from gen.errors import note


def print_lines(source: Source, windows: Windows, pieces: Mapping[str, int]) -> None:
    """Prints a description of the pieces and their windows to stderr. pieces: {split: number of pieces}."""
    note(*(f"{source.name}: {line}" for line in describe(source, windows, pieces)))


def describe(source: Source, windows: Windows, pieces: Mapping[str, int]) -> Iterator[str]:
    """Yields lines about the pieces, the windows, and the transpositions. pieces: {split: number of pieces}."""
    lengths = np.array([len(piece) for piece in source.pieces])
    classes = source.classes
    many = "no classes" if classes is None else f"{len(classes)} classes, {describe_classes(classes, source.labels)}"
    counts = ", ".join(f"{n:,} for {split}" for split, n in pieces.items())
    yield f"{len(lengths):,} pieces of {lengths.min():,} to {lengths.max():,} frames, {many}; {counts}"
    several, frames = int((np.diff(windows.first) > 1).sum()), windows.tokens.shape[1]
    cut = f", and {several:,} pieces are cut" if several else ""
    yield f"{len(windows.frames):,} windows of {frames:,} frames, of which {windows.frames.sum() / windows.frames.size / frames:.0%} are notes{cut}"
    if (widths := np.ptp(windows.limits, axis=1)).any():
        yield f"pieces can be moved to {widths.mean() + 1:.3g} keys on average, of {widths.min() + 1} to {widths.max() + 1}"
