"""Describes a folder of images for the user: their number and sizes, the splits and classes, and the files that are left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from gen.data.images.layout import Layout
from gen.data.images.listing import shorten
from gen.data.images.slices import command, kind_of, suggest
from gen.errors import note


class Facts(NamedTuple):
    """Facts of the readable images of a folder, from which `describe` makes its lines."""

    layout: Layout
    counts: Mapping[str, int]
    """{split: number of images}."""
    labels: np.ndarray
    """Class of each image, [N]."""
    sizes: np.ndarray
    """Height and width of each image, [N, 2]."""
    turned: int
    """Number of images that are turned upright when they are decoded, by their EXIF orientation."""
    alpha: int
    """Number of images with transparency."""


def print_lines(name: str, facts: Facts, left_out: str, background: str) -> None:
    """Prints a description of a folder of images to stderr. Each line begins with `name`, the --data.name.

    left_out: description of the files that were left out, or "". background: name of the colour behind transparent
    pixels.
    """
    note(*(f"{name}: {line}" for line in describe(facts, left_out, background)))


def describe(facts: Facts, left_out: str, background: str) -> Iterator[str]:
    """Yields lines about the images, classes, splits, orientation, transparency, and the files that are left out."""
    layout = facts.layout
    classes = layout.classes
    many = "no classes" if classes is None else f"{len(classes)} classes, {describe_classes(classes, facts.labels)}"
    yield f"{len(facts.sizes):,} images of {describe_sizes(facts.sizes)}, {many}"
    yield from describe_layout(layout, facts.counts, facts.labels, "images")
    if facts.turned:
        yield f"{facts.turned:,} images are turned upright, as their EXIF orientation says"
    if facts.alpha:
        yield f"{facts.alpha:,} images with transparency are put on the colour {background} (--data.background)"
    if left_out:
        yield f"left out: {left_out}"


def describe_layout(layout: Layout, counts: Mapping[str, int], labels: np.ndarray, what: str) -> Iterator[str]:
    """Yields lines that say whether sub-folders are splits, are not used, or hold everything.

    counts: {split: number of files}. labels: class of each file, [N], in the order of the splits. what: word for the
    files in messages, such as "images".
    """
    if layout.are_splits:
        yield f"the sub-folders are splits: {describe_counts(counts)}"
        # The labels are in the order of the splits.
        first, n = next(iter(counts.items()))
        seen = set(labels[:n].tolist())
        if missing := [each for i, each in enumerate(layout.classes or ()) if i not in seen]:
            yield f"{first} has no {what} of {shorten(missing)}"
    if layout.unused:
        line = f"no option names the sub-folders {describe_counts(layout.unused)}"
        fix = command(suggest({split: [n] for split, n in {**counts, **layout.unused}.items()}))
        yield f"{line}; to use them: {fix}" if any(map(kind_of, layout.unused)) else line
    if layout.wrapper:
        yield f"all {what} lie in the sub-folder {'/'.join(layout.wrapper)}, which is not a class"


def describe_classes(classes: tuple[str, ...], labels: np.ndarray) -> str:
    """Returns the names of classes with their numbers of images, such as "cat (12), dog (9)"."""
    return describe_counts(dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True)))


def describe_counts(counts: Mapping[str, int]) -> str:
    """Returns names with their numbers of images, such as "cat (12), dog (9)"."""
    return shorten(f"{name} ({n:,})" for name, n in counts.items())


def describe_sizes(sizes: np.ndarray) -> str:
    """Returns a text about the sizes of images. sizes: height and width of each image, [N, 2].

    It is "28x28" (height x width) if all sizes are equal, otherwise like "heights 20 to 28 and widths 24 to 32".
    """
    (low_height, low_width), (high_height, high_width) = sizes.min(0).tolist(), sizes.max(0).tolist()
    if (low_height, low_width) == (high_height, high_width):
        return f"{low_height}x{low_width}"
    return f"heights {low_height} to {high_height} and widths {low_width} to {high_width}"
