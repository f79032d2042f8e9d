"""The config of image data sets, and how it opens the images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import numpy as np

from gen import core, errors, memory
from gen.core import HostBatch
from gen.data import digest
from gen.data.examples import Examples
from gen.data.images import folder, pairs, patches, pixels, sources, tfds
from gen.data.images.folder import FolderOptions
from gen.data.images.preprocess import preprocess
from gen.data.images.reading import Decoding, Shape, decode_images, hold_in_memory
from gen.data.images.slices import Slices, fill_in, positions, report_overlap
from gen.data.images.sources import Source
from gen.data.order import permute, permute_by_grain
from gen.data.readers import Reader, SplitReader
from gen.errors import UserError


@dataclass(frozen=True)
class Images(core.Data):
    """A data set of images. Batches have "image" float32 [B, H, W, C] in [-1, 1].

    If the data have classes, batches also have "label" int32 [B]. If the data are pairs of pictures, "image" is the
    target, and batches also have "source", with the same shape and range. If `patch` is set, batches also have "tokens",
    int32 [B, H / patch[0], W / patch[0], ...].
    """

    name: str = "digits"
    """digits or stacked_digits, which are built in; the name of a prepared TFDS set, such as mnist or name/config:1.0.0; folder:PATH, whose
    sub-folders are classes, or splits (train, val, test) with a sub-folder for each class; or pairs:PATH, whose sub-folders source and
    target have pictures of the same names."""
    data_dir: str | None = field(default=None, metadata=core.LAUNCH)
    """Directory of prepared TFDS sets. None: ~/tensorflow_datasets, the directory that TFDS uses."""
    train: str | None = "train[:90%]"
    """Examples for training, in the slicing syntax of TFDS. None: the train split of the data if there is one, otherwise a part of another
    split. Data without splits are divided 80:10:10."""
    validation: str | None = "train[90%:]"
    """Examples for choosing a model, written like `train`. None: the validation split of the data, or a part of another split."""
    test: str | None = "test"
    """Examples for the reported scores, written like `train`. None: the test split of the data, or a part of another split."""
    source: pairs.Place = "folder"
    """For pairs:PATH, where the sources are. folder: in the sub-folder source. left, right: each picture holds source and target side by
    side, and this half is the source."""
    size: int | None = None
    """Resize the shorter side to this number of pixels and crop the square centre. None: keep the size."""
    colors: Literal[1, 3] | None = None
    """Convert images to grey (1) or RGB (3). None: keep the channels."""
    background: str = "white"
    """Colour behind transparent pixels: a name such as black, or #RRGGBB."""
    flip: bool = False
    """Mirror each training image left to right with probability 1/2."""
    binarize: Literal["static", "dynamic"] | None = None
    """Make each pixel 1 with a probability equal to its grey level, scaled to [0, 1], and otherwise -1. static: drawn once for each example.
    dynamic: drawn again each time that the example is seen. None: keep the grey levels."""
    dequantize: bool = False
    """Add uniform noise that is as wide as one grey level. The density of a continuous model then gives a lower bound
    of the probability of the levels."""
    patch: tuple[int, ...] = ()
    """Also give the image as a grid of tokens, "tokens" int32. One number: the side, in pixels, of the square patch
    that becomes one token. For example, patches of 2x2 binary pixels have a vocabulary of 16. Two numbers, such as 4 2:
    the side of a square cell of the grid, then the side of a patch. Each cell then has a last axis of tokens, one for
    each of its patches. Empty: no tokens."""
    skip_bad: bool = False
    """Skip images of a folder that cannot be read, and print how many there are. Otherwise such an image is an error."""
    in_memory: int = 2**31
    """Hold the data in memory if the decoded images have at most this number of bytes. Larger data are decoded when needed, and are
    shuffled in a different order."""
    check: Literal["sample", "all"] = field(default="sample", metadata=core.LAUNCH)
    """How each later start looks for changed files and a damaged cache. sample: it compares a random sample of the content, 128 chunks of
    1 MiB. all: it compares every byte."""

    def resolve(self) -> Images:
        """Returns a copy in which each of train, validation and test that was None is a slice of the data.

        If none of the three is None, the data are not read.

        Raises: UserError if an option is wrong, if the images are needed and are missing or can't be used, or if a new slice
        shares examples with a given one.
        """
        check(self)
        given = {split: getattr(self, split) for split in Slices._fields}
        if None not in given.values():
            return self
        if self.name.startswith("folder:"):
            splits = folder.count_images(self.name)
        elif self.name.startswith("pairs:"):
            splits = pairs.count_pairs(self.name, self.source)
        else:
            splits = open_source(self, {}).splits
        return replace(self, **fill_in(given, splits, self.name))

    def build(self) -> core.Dataset:
        """Returns the data set. Decodes all images now if they fit into `in_memory`; otherwise when they are needed.

        Raises: UserError for a wrong option or image.
        """
        config = self.resolve()
        slices = {name: getattr(config, name) for name in Slices._fields}
        source = open_source(self, slices)
        splits = {name: positions(name, value, source.splits, source.name) for name, value in slices.items()}
        report_overlap(self.name, splits)
        shape = check_shape(self, source)
        reader = open_reader(self, source, splits, shape)
        split_reader = SplitReader(splits, reader.read, labels=source.classes is not None)
        examples = Examples(
            sizes={split: len(positions) for split, positions in splits.items()},
            read=partial(read_pairs, split_reader) if source.paired else split_reader.read,
            shuffle=reader.shuffle,
            batch_size=self.batch_size,
        )
        # The spec describes the images after preprocessing.
        levels = 2 if self.binarize else source.levels
        spec = {"image": core.Feature(shape[-3:], levels=levels, dequantized=self.dequantize)}
        if source.paired:
            spec["source"] = core.Feature(shape[-3:], levels=source.levels, axes=("row", "column", "color"))
        if source.classes is not None:
            spec["label"] = core.Feature((), "int32", classes=len(source.classes), names=source.classes)
        transform = partial(
            preprocess, levels=source.levels, flip=self.flip, dequantize=self.dequantize, binarize=self.binarize
        )
        if self.patch:
            spec["tokens"] = patches.patch_tokens(spec["image"], self.patch, self.name)
            transform = partial(patches.tokenize, preprocess=transform, spec=spec)
        return core.Dataset(
            spec=spec,
            sizes=examples.sizes,
            digest=digest.sha256(reader.content, *splits.values()),
            older=tuple(digest.sha256(content, *splits.values()) for content in reader.older_content),
            batch=examples.batch,
            evaluation=examples.evaluation,
            preprocess=transform,
        )


def check(config: Images) -> None:
    """Checks the options, as far as possible without opening the images. Raises: UserError if one is wrong."""
    errors.check_positive(**{"--data.batch-size": config.batch_size})
    errors.check_not_negative(**{"--data.in-memory": config.in_memory})
    if config.size is not None:
        errors.check_positive(**{"--data.size": config.size})
    if config.name in ("folder:", "pairs:"):
        raise UserError(f"--data.name {config.name} has no path; the fix: --data.name {config.name}PATH")
    if config.source != "folder" and not config.name.startswith("pairs:"):
        raise UserError("--data.source is for pairs; leave it out, or give them: --data.name pairs:PATH")
    if config.skip_bad and config.name.startswith("pairs:"):
        raise UserError(
            "--data.skip-bad would leave pictures without partners; the fix: remove the pairs that can't be read"
        )
    if config.binarize and config.dequantize:
        raise UserError("--data.binarize and --data.dequantize exclude each other: choose one")
    if config.patch and config.dequantize:
        raise UserError("--data.patch needs levels, and --data.dequantize adds noise to them: choose one")
    # Called for its error alone: a wrong colour is found before any image is read.
    pixels.parse_color(config.background)


def open_source(config: Images, slices: Mapping[str, str]) -> Source:
    """Opens the images that the config names. Raises: UserError if they are missing or cannot be used.

    slices: {"train", "validation" or "test": slice}. {}: the slices are not known yet.
    """
    whole = config.check == "all"
    if config.name == "digits":
        return sources.digits()
    if config.name == "stacked_digits":
        return sources.stacked_digits()
    if config.name.startswith(("folder:", "pairs:")):
        options = FolderOptions(config.name, slices, config.size, config.background, config.skip_bad, whole)
        is_folder = config.name.startswith("folder:")
        return folder.open_folder(options) if is_folder else pairs.open_pairs(options, config.source)
    return tfds.open_images(config.name, config.data_dir, config.size, whole)


def check_shape(config: Images, source: Source) -> Shape:
    """Returns the shape of an image after decoding and resizing.

    It is (height, width, channels) for an image, and (2, height, width, channels) for a pair.

    Raises: UserError if an image has more than core.MAX_SIZE numbers, or if a batch needs more memory than the machine
    has.
    """
    height, width, channels = source.shape
    height, width = config.size or height, config.size or width
    shape = (*(2,) * source.paired, height, width, config.colors or channels)
    if math.prod(shape) > core.MAX_SIZE:
        raise UserError(f"{config.name}: images of {height}x{width} are too large. Give a size, such as --data.size 64")
    # A batch that does not fit would end the process without a message.
    memory.check_memory(config.batch_size * math.prod(shape), f"a batch of {config.batch_size} images")
    return shape


def open_reader(config: Images, source: Source, splits: Mapping[str, np.ndarray], shape: Shape) -> Reader:
    """Returns a reader of decoded images by position.

    If the images of all splits fit into `config.in_memory`, they are decoded now and held in memory. Otherwise images
    are decoded whenever they are read.

    splits: {split: positions of its images in the source, int64}. shape: of a decoded image or pair, as from
    `check_shape`.
    """
    # Splits may overlap or leave images out. Each used image is decoded once.
    used = np.unique(np.concatenate(list(splits.values())))
    n = len(splits["train"])
    decoding = Decoding(config.size, shape, pixels.parse_color(config.background))
    if len(used) * math.prod(shape) <= config.in_memory:
        held = hold_in_memory(source, used, decoding, config.check == "all")
        return Reader(held.read, held.content, permute(n))
    read = partial(decode_images, source, decoding)
    # The pixels are not hashed here: that would decode the whole set before the first step.
    older = (source.older_content + digest.sha256(str(shape)),) if source.older_content else ()
    return Reader(read, source.content + digest.sha256(str(shape)), permute_by_grain(n), older)


def read_pairs(reader: SplitReader, split: str, index: np.ndarray) -> HostBatch:
    """Reads pairs of a split. Returns targets as "image", sources as "source", uint8 [n, H, W, C], and "label" if any.

    index: positions in the split, int64 [n].
    """
    # Image and source were decoded as one array, so that they share one cache entry and are cropped alike.
    examples = reader.read(split, index)
    target, source = np.moveaxis(examples["image"], 1, 0)
    return {**examples, "image": target, "source": source}
