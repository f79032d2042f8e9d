"""Describes a folder of recordings for the user: their number, splits and classes, and how they are converted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from gen.data.audio.folder import Recordings
from gen.data.audio.windows import Windows
from gen.data.images.describe import describe_classes, describe_layout
from gen.data.images.listing import shorten
from gen.errors import note


def print_lines(recordings: Recordings, windows: Windows) -> None:
    """Prints a description of the recordings and their windows to stderr. Each line begins with the --data.name."""
    note(*(f"{recordings.source.name}: {line}" for line in describe(recordings, windows)))


def describe(recordings: Recordings, windows: Windows) -> Iterator[str]:
    """Yields lines about the recordings, classes, splits, windows, sample rates, channels, and the files that are left out."""
    source, seconds = recordings.source, recordings.source.seconds
    classes = source.classes
    many = "no classes" if classes is None else f"{len(classes)} classes, {describe_classes(classes, source.labels)}"
    yield f"{len(seconds):,} recordings of {seconds.min():.3g} to {seconds.max():.3g} s ({describe_time(seconds.sum())}), {many}"
    counts = {split: sum(lengths) for split, lengths in source.splits.items()}
    yield from describe_layout(recordings.layout, counts, source.labels, "recordings")
    # A recording may be shorter than a window, or have an end that is too short for one more window.
    lengths, per = seconds * windows.rate, np.diff(windows.first)
    padded, several = int((lengths < windows.samples).sum()), int((per > 1).sum())
    cut = int((lengths > per * windows.samples).sum())
    parts = [f"{padded:,} recordings are shorter and end with silence"] * (padded > 0)
    parts += [f"{several:,} have several windows"] * (several > 0)
    parts += [f"the ends of {cut:,} are left out"] * (cut > 0)
    yield "; ".join([f"{windows.first[-1]:,} windows of {windows.samples / windows.rate:.3g} s", *parts])
    rates = Counter(rate for rate in recordings.headers[:, 1].tolist() if rate != windows.rate)
    if rates:
        yield f"resampled to {windows.rate:,} Hz: {shorten(f'{n:,} recordings of {rate:,} Hz' for rate, n in rates.most_common())}"
    mixed = int((recordings.headers[:, 2] != windows.channels).sum())
    if mixed:
        yield f"{mixed:,} recordings are converted to {'mono' if windows.channels == 1 else 'stereo'}"
    if recordings.left_out:
        yield f"left out: {recordings.left_out}"


def describe_time(seconds: float) -> str:
    """Returns a duration as text, in hours, minutes or seconds: "1.5 hours" for 5400 seconds."""
    unit, name = next(
        (unit, name) for unit, name in ((3600, "hours"), (60, "minutes"), (1, "s")) if seconds >= unit or unit == 1
    )
    return f"{seconds / unit:.3g} {name}"
