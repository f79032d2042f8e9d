"""Image data sets: a folder, a prepared TFDS set, or built-in digits, as functions of (seed, step, row)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np
import PIL

from gen import core, errors, files
from gen.data import digest, tfds_sets
from gen.data.cache import cached
from gen.data.images import folder, pixels, sources
from gen.data.images.preprocess import preprocess
from gen.data.images.sources import Record, Source
from gen.data.order import permute, permute_by_grain
from gen.errors import UserError

Read = Callable[[np.ndarray], core.HostBatch]
"""Positions in the source [n] -> {"image": uint8 [n, H, W, C], "label": int32 [n]}."""


@dataclass(frozen=True)
class Images(core.Data):
    """Images, and what is done to them before a model sees them."""

    name: str = "digits"
    """digits; stacked_digits; a TFDS name as mnist or name/config:1.0.0; or folder:PATH, with a sub-folder for each class."""
    data_dir: str | None = field(default=None, metadata=core.LAUNCH)
    """Where TFDS sets are prepared; TFDS's own ~/tensorflow_datasets if None."""
    train: str = "train[:90%]"
    """Examples to train on, in TFDS's slicing syntax."""
    validation: str = "train[90%:]"
    """Examples to choose a model by."""
    test: str = "test"
    """Examples to report."""
    size: int | None = None
    """Resize the shorter side to this many pixels and cut out the square centre; None keeps the size."""
    colors: Literal[1, 3] | None = None
    """Convert to grey (1) or RGB (3); None keeps what there is."""
    flip: bool = False
    """Mirror half of the training images left to right."""
    binarize: Literal["static", "dynamic"] | None = None
    """Make pixels -1 or 1 with the grey level as probability: drawn once an example, or anew each time it is seen."""
    dequantize: bool = False
    """Add uniform noise of one level's width, so that a density over pixels bounds their probability."""
    skip_bad: bool = False
    """Skip images of a folder that can't be read, and log how many."""
    in_memory: int = 2**31
    """Sets of at most this many decoded bytes are held in memory, others decoded as needed, in another random order."""

    def build(self) -> core.Dataset:
        """Opens the source, decodes it if it is small, and checks all that a user can get wrong (UserError)."""
        check(self)
        source = open_source(self)
        splits = {
            field: sources.positions(field, getattr(self, field), source) for field in ("train", "validation", "test")
        }
        height, width, channels = source.shape
        shape = (self.size or height, self.size or width, self.colors or channels)
        if math.prod(shape) > core.MAX_SIZE:
            raise UserError(
                f"{self.name}: images of {shape[0]}x{shape[1]} are too large. Give a size, such as --data.size 64"
            )
        files.check_memory(self.batch_size * math.prod(shape), f"a batch of {self.batch_size} images")
        used = np.unique(np.concatenate(list(splits.values())))
        if len(used) * math.prod(shape) <= self.in_memory:
            read, content = hold(source, used, self.size, shape)
            shuffle = permute(len(splits["train"]))
        else:
            read, content = partial(decoded, source, self.size, shape), source.content + digest.sha256(str(shape))
            shuffle = permute_by_grain(len(splits["train"]))

        def batch(seed: int, step: int, rows: range) -> core.HostBatch:
            first = step * self.batch_size
            index = shuffle(seed, range(first + rows.start, first + rows.stop, rows.step))
            return labelled(read(splits["train"][index]), np.asarray(rows), index, np.ones(len(rows)))

        def evaluation(split: str, batch_size: int, rows: range | None = None) -> Iterator[core.HostBatch]:
            n = len(splits[split])
            for start in range(0, n, batch_size):
                row = start + np.asarray(rows or range(batch_size))
                yield labelled(read(splits[split][np.where(row < n, row, 0)]), row, row, row < n)

        def labelled(
            examples: core.HostBatch, row: np.ndarray, index: np.ndarray, weight: np.ndarray
        ) -> core.HostBatch:
            if source.classes is None:
                examples = {"image": examples["image"]}
            own = {"row": row.astype(np.int32), "index": index.astype(np.int32), "weight": weight.astype(np.float32)}
            return examples | own

        spec = {"image": core.Feature(shape, levels=2 if self.binarize else source.levels, dequantized=self.dequantize)}
        if source.classes is not None:
            spec["label"] = core.Feature((), "int32", classes=len(source.classes))
        return core.Dataset(
            spec=spec,
            sizes={split: len(positions) for split, positions in splits.items()},
            digest=digest.sha256(content, *splits.values()),
            batch=batch,
            evaluation=evaluation,
            preprocess=partial(
                preprocess, levels=source.levels, flip=self.flip, dequantize=self.dequantize, binarize=self.binarize
            ),
        )


def check(config: Images) -> None:
    errors.check_positive(**{"--data.batch-size": config.batch_size})
    if config.size is not None:
        errors.check_positive(**{"--data.size": config.size})
    if config.name == "folder:":
        raise UserError("--data.name folder: names no folder; the fix: --data.name folder:PATH")
    if config.binarize and config.dequantize:
        raise UserError("--data.binarize and --data.dequantize exclude each other: choose one")


def open_source(config: Images) -> Source:
    if config.name == "digits":
        return sources.digits()
    if config.name == "stacked_digits":
        return sources.stacked_digits()
    if config.name.startswith("folder:"):
        return folder.source(config.name, config.size, config.skip_bad)
    return tfds_sets.source(config.name, config.data_dir, config.size)


def hold(source: Source, used: np.ndarray, size: int | None, shape: tuple[int, int, int]) -> tuple[Read, str]:
    """A gather from memory over the positions `used` (sorted), and the SHA-256 of the pixels and labels.

    They are decoded once, and from then on mapped from the cache folder.
    """

    def make() -> dict[str, np.ndarray]:
        arrays = decoded(source, size, shape, used)
        return arrays | {"digest": np.array(digest.sha256(arrays["image"], arrays["label"]))}

    key = digest.sha256(str(source.fingerprint), str((size, shape)), used, f"pillow {PIL.__version__}")
    arrays = cached(key, make) if source.fingerprint else make()
    image, label = arrays["image"], arrays["label"]

    def read(positions: np.ndarray) -> core.HostBatch:
        at = np.searchsorted(used, positions)
        return {"image": image[at], "label": label[at]}

    return read, str(arrays["digest"])


def decoded(source: Source, size: int | None, shape: tuple[int, int, int], positions: np.ndarray) -> core.HostBatch:
    """{"image": uint8 [n, *shape], "label": int32 [n]} of `positions` [n], decoded in threads."""
    n = len(positions)
    image, label = np.empty((n, *shape), np.uint8), np.empty(n, np.int32)

    def fill(start: int, some: list[Record]) -> None:
        for i, (encoded, label[i]) in enumerate(some, start):
            try:
                x = pixels.decode(encoded, size, shape[-1])
                if x.shape != shape:
                    raise ValueError(f"has the shape {x.shape} and not {shape}")
            except ValueError as error:
                raise source.unreadable(int(positions[i]), str(error)) from error
            image[i] = np.minimum(x, source.levels - 1)  # resizing overshoots

    with ThreadPoolExecutor() as pool:
        for first in range(0, n, 1024):
            records = source.read(positions[first : first + 1024].tolist())
            starts = range(0, len(records), 16)  # enough at once that small images don't queue for the threads' lock
            list(pool.map(fill, (first + s for s in starts), (records[s : s + 16] for s in starts)))
    return {"image": image, "label": label}
