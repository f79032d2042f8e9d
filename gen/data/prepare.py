"""Writes a TFDS set as array_record: `python -m gen.data.prepare NAME [--source DIR] [--data-dir DIR]`.

mnist, fashion_mnist and kmnist are made from their four IDX files, without TensorFlow or network. Their examples have the
same order as if TFDS had prepared them. All other sets are prepared by TFDS itself, which needs TensorFlow.
"""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import io
import math
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NamedTuple

import numpy as np
import tyro
from PIL import Image

from gen.data import tfds_sets
from gen.errors import UserError, run_command, say
from gen.files import MAX_BYTES, check_regular, expand_paths

STOCK = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""TFDS name -> class of its builder in tensorflow_datasets.image_classification.mnist."""
PREFIX = {"train": "train", "test": "t10k"}
"""TFDS split -> first part of the names of its IDX files."""
SIDE = 28  # pixels
CLASSES = 10
READ_BYTES = 2**20  # number of bytes of an IDX file that are read at once
MAX_RATIO = 1032  # the largest compression ratio of deflate


@dataclass(frozen=True)
class Options:
    """Write a TFDS set as array_record, the format that gen reads."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """mnist, fashion_mnist or kmnist. With TensorFlow installed, any other name that TFDS knows."""
    source: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder with the four IDX files of the set, raw or .gz. None: TFDS downloads the set."""
    data_dir: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Directory to write to. None: ~/tensorflow_datasets, the directory that TFDS uses."""


class Split(NamedTuple):
    """The examples of one split."""

    images: np.ndarray
    """uint8 [n, 28, 28]."""
    labels: np.ndarray
    """uint8 [n], in [0, 10)."""


def main() -> None:
    """Runs `python -m gen.data.prepare` with the arguments of the command line."""
    options = expand_paths(tyro.cli(Options, prog="python -m gen.data.prepare"))
    prepare(options.name, options.source, options.data_dir)


def prepare(name: str, source: Path | None = None, data_dir: str | None = None) -> None:
    """Writes a TFDS set as array_record, unless it is already prepared. Prints where the set is.

    name, source, data_dir: as in `Options`. TFDS writes to a temporary folder and renames it, so an interrupted run
    leaves nothing that looks prepared.

    Raises: UserError if the set is unknown, its files are missing or damaged, or TensorFlow is needed and not installed.
    """
    path = tfds_sets.find(name, data_dir)
    if path is not None:
        say(f"{name} is already prepared in {path}")
    elif source is not None:
        prepare_idx(name, source, data_dir)
    else:
        download(name, data_dir)


def prepare_idx(name: str, source: Path, data_dir: str | None) -> None:
    """Writes mnist, fashion_mnist or kmnist from the IDX files in `source`, under the name and version that TFDS uses.

    Raises: UserError for another name, or if a file is missing or damaged.
    """
    if name not in STOCK:
        raise UserError(f"--source is for {', '.join(STOCK)} in IDX files; leave it out to let TFDS download {name}")
    # All files are checked before TFDS creates a folder.
    splits = {split: read_split(source, prefix) for split, prefix in PREFIX.items()}

    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import skip_registration
    from tensorflow_datasets.image_classification import mnist

    stock = getattr(mnist, STOCK[name])

    def split_generators(self: Any, download_manager: object) -> dict[str, object]:
        return {split: self._generate_examples(split) for split in splits}

    def generate_examples(self: object, split: str) -> Iterator[tuple[int, dict[str, object]]]:
        images, labels = splits[split]
        # TFDS orders examples by the hash of their keys. Positions are the keys of its own builder.
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": png(image), "label": int(label)}
            if key % 1000 == 999 or key + 1 == len(labels):
                print(f"\r{name} {split}: {key + 1} of {len(labels)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    overrides = {"_split_generators": split_generators, "_generate_examples": generate_examples}
    # The subclass keeps the name and module of the stock builder, so that TFDS finds the set by its usual name.
    with skip_registration():
        offline = type(stock.__name__, (stock,), {**overrides, "url_infos": {}, "__module__": stock.__module__})
    builder = offline(data_dir=tfds_sets.root(data_dir), file_format="array_record")
    tfds.disable_progress_bar()
    # TFDS announces a download and makes a folder for it, although there is none.
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads)
    say(f"{name} is prepared in {builder.data_dir}")


def download(name: str, data_dir: str | None) -> None:
    """Lets TFDS download and prepare a set. Raises: UserError if TensorFlow is not installed, or TFDS has no such set."""
    if not importlib.util.find_spec("tensorflow"):
        idx = ", or pass --source DIR with its IDX files" if name in STOCK else ""
        raise UserError(f"TFDS needs TensorFlow to prepare {name}: pip install 'gen[tensorflow]'{idx}")

    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=tfds_sets.root(data_dir), file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"TFDS has no set {name!r}: {str(error).splitlines()[0]}") from error
    builder.download_and_prepare()
    say(f"{name} is prepared in {builder.data_dir}")


def read_split(source: Path, prefix: str) -> Split:
    """Reads the image file and the label file of a split, in IDX format. prefix: "train" or "t10k".

    Raises: UserError if a file is missing or damaged, if images are not 28 x 28, if the numbers of images and labels
    differ, or if a label is above 9.
    """
    image_file, images = read_idx(source, f"{prefix}-images", 3)
    label_file, labels = read_idx(source, f"{prefix}-labels", 1)
    if images.shape[1:] != (SIDE, SIDE) or not len(images):
        raise UserError(f"{image_file}: holds {images.shape} pixels, not (n, {SIDE}, {SIDE})")
    if len(images) != len(labels):
        raise UserError(f"{image_file} has {len(images)} images but {label_file} has {len(labels)} labels")
    if labels.max() >= CLASSES:
        raise UserError(f"{label_file}: label {labels.max()} is not in [0, {CLASSES})")
    return Split(images, labels)


def read_idx(source: Path, stem: str, rank: int) -> tuple[Path, np.ndarray]:
    """Reads a file of bytes in IDX format. Returns its path and its content, uint8 with `rank` dimensions.

    The format is big-endian: two zero bytes, the type 0x08, the rank, `rank` sizes as uint32, and the bytes
    (http://yann.lecun.com/exdb/mnist).

    source: folder of the file. stem: start of its name: "train-images" finds "train-images-idx3-ubyte" with or without
    .gz, also with a dot instead of the hyphen before idx3.

    Raises: UserError if the file is missing or damaged.
    """
    names = [f"{stem}{dot}idx{rank}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    path = next((source / each for each in names if (source / each).exists()), None)
    if path is None:
        raise UserError(f"{source}: there is none of {', '.join(names)}")
    stored = check_regular(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            # The header: 4 bytes, and 4 bytes for each size.
            head = file.read(4 + 4 * rank)
            if head[:4] != bytes([0, 0, 8, rank]) or len(head) < 4 + 4 * rank:
                raise UserError(f"{path}: is not an IDX file of bytes with {rank} dimensions")
            shape = tuple(int(size) for size in np.frombuffer(head[4:], ">u4"))
            content = read_claimed(file, path, math.prod(shape), stored - len(head))
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: cannot be unpacked ({error}); download it again") from error
    return path, np.frombuffer(content, np.uint8).reshape(shape)


def read_claimed(file: gzip.GzipFile | BinaryIO, path: Path, claimed: int, left: int) -> bytes:
    """Returns the content of an IDX file after its header. Its size must equal the size in the header.

    file: the open file, after its header. path: its path; the ending .gz means that the file is compressed. claimed:
    number of bytes by the header. left: for an uncompressed file, the number of bytes after the header.

    Raises: UserError if the number is too large or wrong. If the size of the file shows this, nothing is read. OSError
    and EOFError if the file can't be read or unpacked.
    """
    packed = path.suffix == ".gz"
    if claimed > MAX_BYTES:
        raise UserError(f"{path}: its header claims {claimed:,} bytes; the limit is {MAX_BYTES:,}")
    if (packed and claimed > MAX_RATIO * path.stat().st_size) or (not packed and left != claimed):
        held = f"{left} {'packed ' * packed}bytes"
        raise UserError(f"{path}: holds {held} instead of {claimed}; download it again")
    # In parts: a claim that the content does not fulfil takes no memory. One byte more shows whether the content goes on.
    parts, wanted = [], claimed + 1
    while wanted and (part := file.read(min(wanted, READ_BYTES))):
        parts.append(part)
        wanted -= len(part)
    if wanted != 1:
        held = f"{claimed + 1 - wanted} bytes" if wanted else "more bytes"
        raise UserError(f"{path}: holds {held} instead of {claimed}; download it again")
    return b"".join(parts)


def png(image: np.ndarray) -> io.BytesIO:
    """Returns an image uint8 [height, width] as a PNG file in memory."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    buffer.seek(0)
    return buffer


if __name__ == "__main__":
    run_command(main)
