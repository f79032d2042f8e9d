"""TFDS image sets that lie prepared on disk as array_record. Nothing here downloads, writes, or imports TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gen import files as gen_files
from gen.data.digest import sha256
from gen.data.images import pixels
from gen.data.images.sources import Record, Source
from gen.errors import UserError
from gen.files import expand_user

NAME = re.compile(r"(?P<path>[A-Za-z]\w*(/\w[\w.-]*)?)(:(?P<version>\d+\.\d+\.\d+))?")
FEATURES, CLASS = "features.json", ("pythonClassName", "python_class_name", "type")
VERSION = re.compile(r"\d+\.\d+\.\d+")


def root(data_dir: str | None) -> Path:
    """The directory of prepared sets, by default TFDS's own."""
    return expand_user(data_dir or "~/tensorflow_datasets")


def find(name: str, data_dir: str | None) -> Path | None:
    """`DATA_DIR/NAME/[CONFIG/]VERSION` of a prepared set, of the highest version unless the name says which; or None.

    Looks on disk only: asked for a set that isn't there, TFDS tries the network for minutes and creates the folder.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise UserError(
            f'{name!r} is neither "digits", "folder:PATH" nor a TFDS name such as mnist or name/config:1.0.0'
        )
    infos = (root(data_dir) / match["path"]).glob("*/dataset_info.json")
    found = [info.parent for info in infos if VERSION.fullmatch(info.parent.name)]
    wanted = [path for path in found if match["version"] in (None, path.name)]
    return max(wanted, key=lambda path: [int(part) for part in path.name.split(".")], default=None)


def opened(path: Path) -> tuple[Any, dict[str, list[int]], list[Path]]:
    """(builder, {split: examples in each of its files}, the files) of a prepared set.

    Raises: UserError if it is damaged or can't be read at random, or a file is missing.
    """
    for name in connectors(path):
        if not name.startswith("tensorflow_datasets."):  # TFDS would import it
            raise UserError(f"{path / FEATURES} names {name[:80]!r}, which is not part of TFDS")

    import tensorflow_datasets as tfds

    try:
        builder: Any = tfds.builder_from_directory(path)
    except Exception as error:  # of damaged files, TFDS raises nearly anything
        raise UserError(f"{path} can't be opened as a TFDS set: {f'{error}.'.splitlines()[0]}") from error
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
            f"{path} is not prepared as array_record, and can't be read at random.\n"
            f"Prepare it elsewhere, python -m gen.data.prepare {builder.name} --data-dir DIR, and pass --data.data-dir DIR"
        )
    splits = {split: list(info.shard_lengths) for split, info in builder.info.splits.items() if info.num_examples}
    files = [Path(file) for split in splits for file in builder.info.splits[split].filepaths]
    if missing := [file for file in files if not file.exists()]:
        raise UserError(
            f"{missing[0]} is missing: delete {path} and prepare it again, python -m gen.data.prepare {builder.name}"
        )
    return builder, splits, files


def connectors(path: Path) -> Iterator[str]:
    """The classes that a prepared set's features are of, as it names them."""
    try:
        values = [gen_files.read_json(path / FEATURES)]
    except FileNotFoundError:
        return
    while values:
        value = values.pop()
        if isinstance(value, dict):
            yield from (value[key] for key in CLASS if isinstance(value.get(key), str))
        values += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def source(name: str, data_dir: str | None, size: int | None) -> Source:
    """A prepared TFDS set: its image feature "image" and class label "label", or else the first by name.

    Raises UserError if it isn't prepared, can't be read at random, has no 8-bit images, or they differ in size while
    `size` is None.
    """
    path = find(name, data_dir)
    if path is None:
        raise UserError(not_prepared(name, data_dir))

    import tensorflow_datasets as tfds

    builder, splits, files = opened(path)
    features = builder.info.features
    image = preferred("image", [key for key, value in features.items() if isinstance(value, tfds.features.Image)])
    label = preferred("label", [key for key, value in features.items() if isinstance(value, tfds.features.ClassLabel)])
    if image is None:
        raise UserError(f"{name} has no images: its features are {', '.join(sorted(features))}")
    height, width, channels = features[image].shape
    if features[image].np_dtype != np.uint8 or channels not in pixels.MODES:
        raise UserError(
            f"{name}: its images are {features[image].np_dtype} of {channels} channels, not uint8 of 1, 3 or 4"
        )
    if size is None and None in (height, width):
        raise UserError(f"{name}: its images differ in size. Give them one, such as --data.size 64")

    records: Any = builder.as_data_source("+".join(splits), deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    wanted: Any = tfds.features.FeaturesDict({key: features[key] for key in (image, label) if key})
    skip: Any = tfds.decode.SkipDecoding

    def read(positions: Sequence[int]) -> list[Record]:
        # Read together: one by one, array_record is ten times slower.
        serialized = records.__getitems__(positions)
        examples = [wanted.deserialize_example_np(each, decoders={image: skip()}) for each in serialized]
        if label and any(example[label] < 0 for example in examples):
            raise UserError(
                f"{name}: some examples have no label (-1), as in the test split of a contest; choose other splits"
            )
        return [(example[image], int(example[label]) if label else 0) for example in examples]

    stats = [(file, file.stat()) for file in [path / "dataset_info.json", *files]]
    content = [f"{file.name} {stat.st_size}" for file, stat in stats]
    return Source(
        name=name,
        splits=splits,
        shape=(height or 0, width or 0, channels),
        levels=256,
        classes=tuple(features[label].names) if label else None,
        read=read,
        unreadable=lambda position, why: UserError(f"{name}: image {position} {why}. Prepare the set again"),
        content=sha256(
            builder.info.full_name, *(f"{split} {lengths}" for split, lengths in splits.items()), *content[1:]
        ),
        fingerprint=sha256(str(path.resolve()), *content, *(str(stat.st_mtime_ns) for _, stat in stats)),
    )


def preferred(name: str, names: Sequence[str]) -> str | None:
    return name if name in names else min(names, default=None)


def command(name: str, data_dir: Path) -> str:
    """What a user types to prepare the set."""
    return f"python -m gen.data.prepare {name} --source DIR --data-dir {data_dir}"


def not_prepared(name: str, data_dir: str | None) -> str:
    """What is missing, what lies there instead, and how to get it."""
    there = root(data_dir)
    infos = there.glob(f"{re.split('[/:]', name)[0]}/**/dataset_info.json")
    near = sorted(info.parent.relative_to(there).as_posix() for info in infos)
    return (
        f"{name} is not prepared in {there}{', where there is ' + ', '.join(near) if near else ''}.\n"
        f"{command(name, there)} does it from the files in DIR;"
        " after pip install 'gen[tensorflow]' the same without --source lets TFDS download them"
    )
