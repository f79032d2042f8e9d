"""Sources of images: encoded images that can be read by position, and the built-in digits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from gen.data.digest import sha256
from gen.data.images import pixels
from gen.errors import UserError

Record = tuple[bytes | Path | np.ndarray | tuple[Path, ...], int]
"""(image, label). The image is encoded bytes, a path, pixels uint8 [H, W] or [H, W, 3], or the paths of a pair. The label is 0 if there
are no classes."""
N_DIGITS, N_TRAIN_DIGITS = 1797, 1437
N_TRAIN_STACKS, N_TEST_STACKS = 30_000, 3_000


class Source(NamedTuple):
    """Encoded images that can be read by position. Positions count through all splits, one split after the other."""

    name: str
    """The --data.name of the config."""
    splits: Mapping[str, Sequence[int]]
    """{split: number of examples in each of its shards}."""
    shape: tuple[int, int, int]
    """(height, width, channels) of the stored images. Height and width are 0 if they differ."""
    levels: int
    """Pixels are integers in [0, levels)."""
    classes: tuple[str, ...] | None
    """Name of each class. None: there are no labels."""
    read: Callable[[Sequence[int]], list[Record]]
    """(positions) -> the record of each: its image, still encoded, and its label. See `Record`."""
    unreadable: Callable[[int, str], UserError]
    """(position, reason) -> the error for an image that cannot be decoded."""
    content: str
    """Digest of the examples, which is the same on every machine. It is part of the digest of the data set."""
    fingerprint: str | None
    """Digest of everything that decides the decoded images and their labels, for the key of the cache. None: not cached."""
    decode: Callable[..., np.ndarray] = pixels.decode
    """Decodes an image, with the arguments of `pixels.decode`. For pairs it returns target and source, uint8 [2, H, W, C]."""
    paired: bool = False
    """Whether each image is a pair of a source and a target, which are decoded as one array."""
    older_content: str | None = None
    """The value of `content` that older versions of gen computed for the same examples, from names and sizes of files. None: equal to
    `content`."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory."""

    name: str
    images: np.ndarray
    """uint8 [N, H, W, C], or [N, H, W] for grey images."""
    labels: np.ndarray
    """Integers [N]."""

    def read(self, positions: Sequence[int]) -> list[Record]:
        """Returns (pixels, label) of each of these positions."""
        return [(self.images[i], int(self.labels[i])) for i in positions]

    def unreadable(self, position: int, reason: str) -> UserError:
        """Returns the error for an image that cannot be converted."""
        return UserError(f"{self.name}: image {position} {reason}")

    def source(self, splits: Mapping[str, Sequence[int]], levels: int, classes: tuple[str, ...]) -> Source:
        """Returns these images as a Source with the given splits, levels and names of classes."""
        height, width = self.images.shape[1:3]
        return Source(
            name=self.name,
            splits=splits,
            shape=(height, width, self.images.shape[3] if self.images.ndim == 4 else 1),
            levels=levels,
            classes=classes,
            read=self.read,
            unreadable=self.unreadable,
            content=sha256(self.images, self.labels),
            fingerprint=None,
        )


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Returns scikit-learn's digits in a fixed random order: images uint8 [1797, 8, 8] in [0, 16], labels [1797]."""
    found = find_spec("sklearn")  # only its data file is read, because importing scikit-learn takes a second
    assert found is not None
    assert found.origin is not None
    table = np.loadtxt(Path(found.origin).parent / "datasets/data/digits.csv.gz", np.int64, delimiter=",")
    # The file groups its examples by writer, so the splits are only alike after a shuffle.
    table = table[np.random.default_rng(0).permutation(N_DIGITS)]
    return table[:, :64].reshape(-1, 8, 8).astype(np.uint8), table[:, 64]


def digits() -> Source:
    """Returns the 1797 handwritten digits of scikit-learn (a copy of the UCI set), 8 x 8 x 1 pixels in [0, 16].

    "train" has 1437 of them and "test" 360, in a fixed random order.
    """
    images = ArrayImages("digits", *_load_digits())
    splits = {"train": [N_TRAIN_DIGITS], "test": [N_DIGITS - N_TRAIN_DIGITS]}
    return images.source(splits, levels=17, classes=tuple("0123456789"))


def stacked_digits() -> Source:
    """Returns images 8 x 8 x 3 whose red, green and blue channels are three random digits: 1000 classes, 100 r + 10 g + b.

    They are used to count the modes that a generator covers (Metz et al. 2017 and Lin et al. 2018, who stack MNIST). "train" has 30,000
    stacks of training digits and "test" 3,000 stacks of test digits, both drawn with a fixed seed.
    """
    images, labels = _load_digits()
    # The draws of train and test follow each other in one stream of random numbers.
    rng = np.random.default_rng(1)
    train = rng.integers(0, N_TRAIN_DIGITS, (N_TRAIN_STACKS, 3))
    test = rng.integers(N_TRAIN_DIGITS, N_DIGITS, (N_TEST_STACKS, 3))
    rows = np.concatenate([train, test])
    stacks = ArrayImages("stacked_digits", images[rows].transpose(0, 2, 3, 1), labels[rows] @ np.array([100, 10, 1]))
    classes = tuple(f"{i:03d}" for i in range(1000))
    return stacks.source({"train": [N_TRAIN_STACKS], "test": [N_TEST_STACKS]}, levels=17, classes=classes)
