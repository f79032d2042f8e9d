"""Writes a TFDS set as array_record: `python -m gen.data.prepare NAME [--source DIR] [--data-dir DIR]`.

mnist, fashion_mnist and kmnist are made from their four IDX files, without TensorFlow and without network, with the
examples in the order that TFDS itself would give them; any other set by TFDS, which needs TensorFlow.
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
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image

from gen.data import tfds_sets
from gen.errors import UserError, run_command

STOCK = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""TFDS name -> its builder's class in tensorflow_datasets.image_classification.mnist."""
PREFIX = {"train": "train", "test": "t10k"}
"""TFDS split -> how its IDX files' names begin."""


def prepare(name: tyro.conf.Positional[str], source: Path | None = None, data_dir: str | None = None) -> None:
    """Write a TFDS set as array_record, which gen reads.

    TFDS writes aside and renames at the end, so an interrupted run leaves nothing that looks prepared.

    Args:
        name: mnist, fashion_mnist or kmnist; or, with TensorFlow installed, any other name that TFDS knows.
        source: The folder of the four IDX files, raw or .gz; without it TFDS downloads.
        data_dir: Where to write; TFDS's own ~/tensorflow_datasets if None.
    """
    there = tfds_sets.find(name, data_dir)
    if there is not None:
        print(f"{name} is already prepared in {there}")
    elif source is not None:
        prepare_idx(name, source, data_dir)
    else:
        download(name, data_dir)


def prepare_idx(name: str, source: Path, data_dir: str | None) -> None:
    """Writes a set of MNIST's form from `source`, under the stock name and version, in the order that TFDS gives it."""
    if name not in STOCK:
        raise UserError(f"--source is for {', '.join(STOCK)} in IDX files; leave it out to let TFDS download {name}")
    splits = {split: read_split(source, prefix) for split, prefix in PREFIX.items()}

    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.registered import skip_registration
    from tensorflow_datasets.image_classification import mnist

    stock = getattr(mnist, STOCK[name])

    def split_generators(self: Any, download_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in splits}

    def generate_examples(self: Any, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = splits[split]
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):  # the stock keys, which fix the order
            yield key, {"image": png(image), "label": int(label)}
            if key % 1000 == 999 or key + 1 == len(labels):
                print(f"\r{name} {split}: {key + 1} of {len(labels)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)

    overrides = {"_split_generators": split_generators, "_generate_examples": generate_examples}
    with skip_registration():
        offline = type(stock.__name__, (stock,), {**overrides, "url_infos": {}, "__module__": stock.__module__})
    builder = offline(data_dir=tfds_sets.root(data_dir), file_format="array_record")
    tfds.disable_progress_bar()
    # TFDS announces a download, and makes a folder for it.
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads)
    print(f"{name} is prepared in {builder.data_dir}")


def download(name: str, data_dir: str | None) -> None:
    """Lets TFDS download and prepare a set."""
    if not importlib.util.find_spec("tensorflow"):
        idx = ", or pass --source DIR with its IDX files" if name in STOCK else ""
        raise UserError(f"TFDS needs TensorFlow to prepare {name}: pip install 'gen[tensorflow]'{idx}")

    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=tfds_sets.root(data_dir), file_format="array_record")
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise UserError(f"TFDS knows no set {name!r}: {str(error).splitlines()[0]}") from error
    builder.download_and_prepare()
    print(f"{name} is prepared in {builder.data_dir}")


def read_split(source: Path, prefix: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [n, 28, 28] and labels uint8 [n] of a split."""
    image_file, images = read_idx(source, f"{prefix}-images", 3)
    label_file, labels = read_idx(source, f"{prefix}-labels", 1)
    if images.shape[1:] != (28, 28) or not len(images):
        raise UserError(f"{image_file}: holds {images.shape} pixels, not (n, 28, 28)")
    if len(images) != len(labels):
        raise UserError(f"{image_file} has {len(images)} images but {label_file} {len(labels)} labels")
    if labels.max() > 9:
        raise UserError(f"{label_file}: label {labels.max()} is not in 0 ... 9")
    return images, labels


def read_idx(source: Path, stem: str, rank: int) -> tuple[Path, np.ndarray]:
    """A file of unsigned bytes in IDX format, uint8 with `rank` dimensions.

    Big-endian: two zero bytes, the type 0x08, the rank, `rank` sizes as uint32, the bytes (http://yann.lecun.com/exdb/mnist).
    """
    names = [f"{stem}{dot}idx{rank}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    path = next((source / each for each in names if (source / each).is_file()), None)
    if path is None:
        raise UserError(f"{source}: there is none of {', '.join(names)}")
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path}: can't be unpacked ({error}); fetch it again") from error
    start = 4 + 4 * rank
    if data[:4] != bytes([0, 0, 8, rank]) or len(data) < start:
        raise UserError(f"{path}: is not an IDX file of bytes with {rank} dimensions")
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">u4"))
    if len(data) - start != math.prod(shape):
        raise UserError(f"{path}: holds {len(data) - start} bytes where {math.prod(shape)} are due; fetch it again")
    return path, np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def png(image: np.ndarray) -> io.BytesIO:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    buffer.seek(0)
    return buffer


if __name__ == "__main__":
    run_command(lambda: tyro.cli(prepare))
