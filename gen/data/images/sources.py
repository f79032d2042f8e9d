"""Where images come from: encoded pictures that can be read at random, and TFDS's slicing of their splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen.data.digest import sha256
from gen.errors import UserError

Record = tuple[bytes | Path | np.ndarray, int]
"""An encoded image (bytes, a file, or its pixels, grey or RGB) and its label, 0 if there are none."""


class Source(NamedTuple):
    """Encoded images by position, all splits one after the other."""

    name: str
    """As the user wrote it."""
    splits: Mapping[str, Sequence[int]]
    """The number of examples of each split, by shard."""
    shape: tuple[int, int, int]
    """(height, width, channels) as stored; height and width are 0 if the images differ."""
    levels: int
    """Pixels are integers in [0, levels)."""
    classes: tuple[str, ...] | None
    """Names of the classes that labels count; None if there are no labels."""
    read: Callable[[Sequence[int]], list[Record]]
    """Positions -> records."""
    unreadable: Callable[[int, str], UserError]
    """(position, reason) -> what to tell the user about an image that can't be decoded."""
    content: str
    """Digest of what the examples are, the same on every machine that has them."""
    fingerprint: str | None
    """Digest that changes whenever the files do, on this machine; None if there are no files to watch."""


def digits() -> Source:
    """1797 handwritten digits of 8 x 8 x 1 pixels in [0, 16], scikit-learn's copy of the UCI set, shuffled once and for
    all: "train" are 1437 of them, "test" the other 360."""
    found = find_spec("sklearn")  # importing it takes a second
    assert found is not None
    assert found.origin is not None
    table = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", np.int64, delimiter=",")
    table = table[np.random.default_rng(0).permutation(1797)]
    images, labels = table[:, :64].reshape(-1, 8, 8).astype(np.uint8), table[:, 64]
    return Source(
        name="digits",
        splits={"train": [1437], "test": [360]},
        shape=(8, 8, 1),
        levels=17,
        classes=tuple("0123456789"),
        read=lambda positions: [(images[i], int(labels[i])) for i in positions],
        unreadable=lambda position, reason: UserError(f"digits: image {position} {reason}"),
        content=sha256(images, labels),
        fingerprint=None,
    )


def stacked_digits() -> Source:
    """Three of `digits` at random as the red, green and blue channel of an image, 8 x 8 x 3 in [0, 16]: 1000 classes,
    100 r + 10 g + b, to count the modes of a generator by (Metz et al. 2017; Lin et al. 2018, there of MNIST). "train" are
    30,000 of training digits, "test" 3,000 of the test digits; drawn once and for all."""
    single, rng = digits(), np.random.default_rng(1)
    train, test = (sum(single.splits[name]) for name in ("train", "test"))
    images, labels = (np.stack(x) for x in zip(*single.read(range(train + test)), strict=True))
    rows = np.concatenate([rng.integers(0, train, (30_000, 3)), rng.integers(train, train + test, (3_000, 3))])
    images, labels = images[rows].transpose(0, 2, 3, 1), labels[rows] @ np.array([100, 10, 1])
    return Source(
        name="stacked_digits",
        splits={"train": [30_000], "test": [3_000]},
        shape=(8, 8, 3),
        levels=17,
        classes=tuple(f"{i:03d}" for i in range(1000)),
        read=lambda positions: [(images[i], int(labels[i])) for i in positions],
        unreadable=lambda position, reason: UserError(f"stacked_digits: image {position} {reason}"),
        content=sha256(images, labels),
        fingerprint=None,
    )


def positions(field: str, split: str, source: Source) -> np.ndarray:
    """The examples of a split in TFDS's slicing syntax, as int64 positions in the source. TFDS parses and rounds.

    `field` names the option in errors. Raises UserError if the string is wrong or nothing is left.
    """
    import tensorflow_datasets as tfds

    infos = {
        name: tfds.core.SplitInfo(name=name, shard_lengths=list(lengths), num_bytes=0)
        for name, lengths in source.splits.items()
    }
    ends = np.cumsum([info.num_examples for info in infos.values()])
    of = {name: np.arange(end - infos[name].num_examples, end) for name, end in zip(infos, ends, strict=True)}
    try:
        pieces = tfds.core.ReadInstruction.from_spec(split).to_absolute(infos)
    except (ValueError, NotImplementedError) as error:
        raise wrong(field, split, source, str(error).splitlines()[-1]) from error
    found = np.concatenate([of[piece.splitname][piece.from_ : piece.to] for piece in pieces])
    if not len(found):
        raise wrong(field, split, source, "no examples are left")
    return found


def wrong(field: str, split: str, source: Source, reason: str) -> UserError:
    """What is wrong with a split, which ones there are, and a way to slice them."""
    there = ", ".join(f"{name} ({sum(lengths)})" for name, lengths in source.splits.items())
    first, *others = source.splits
    train, validation, test = f"{first}[:80%]", f"{first}[80%:90%]", f"{first}[90%:]"
    if others:
        train, validation, test = f"{first}[:90%]", f"{first}[90%:]", others[-1]
    return UserError(
        f"--data.{field} {split!r}: {reason}\n{source.name} has the splits {there};"
        f' for instance --data.train "{train}" --data.validation "{validation}" --data.test "{test}"'
    )
