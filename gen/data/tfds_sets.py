"""Finds and opens TFDS sets that are prepared on disk as array_record. It never downloads, writes or imports TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gen import files as gen_files
from gen.data.chunks import facts_of
from gen.data.contents import content_sums
from gen.errors import UserError
from gen.files import expand_user

NAME = re.compile(r"(?P<path>[A-Za-z]\w*(/\w[\w.-]*)?)(:(?P<version>\d+\.\d+\.\d+))?")
VERSION = re.compile(r"\d+\.\d+\.\d+")
FEATURES = "features.json"
CLASS_KEYS = ("pythonClassName", "python_class_name", "type")  # keys of features.json that name a Python class

Builder = Any
"""A tfds.core.DatasetBuilder. TFDS is only imported when a set is opened, and its types are dynamic."""


class PreparedSet(NamedTuple):
    """A TFDS set that is prepared on disk."""

    builder: Builder
    splits: dict[str, list[int]]
    """{split: number of examples in each of its files}. Splits without examples are left out."""
    files: list[Path]
    """The files of all splits."""


def root(data_dir: str | None) -> Path:
    """Returns `data_dir`, the directory of prepared sets. None: ~/tensorflow_datasets, the directory that TFDS uses."""
    return expand_user(data_dir or "~/tensorflow_datasets")


def find(name: str, data_dir: str | None) -> Path | None:
    """Returns the folder `DATA_DIR/NAME/[CONFIG/]VERSION` of a prepared set, or None if it is not there.

    name: NAME, NAME/CONFIG, or either with ":VERSION". Without a version the highest one is chosen. data_dir: the
    directory of prepared sets, see `root`.

    Raises: UserError if the name has another form.
    """
    match = NAME.fullmatch(name)
    if not match:
        raise UserError(
            f'{name!r} is neither "digits", "folder:PATH" nor a TFDS name such as mnist or name/config:1.0.0'
        )
    # Only the disk is searched here. TFDS itself would try the network for minutes, and create the folder.
    infos = (root(data_dir) / match["path"]).glob("*/dataset_info.json")
    found = [info.parent for info in infos if VERSION.fullmatch(info.parent.name)]
    wanted = [path for path in found if match["version"] in (None, path.name)]
    return max(wanted, key=_version, default=None)


def _version(path: Path) -> list[int]:
    return [int(part) for part in path.name.split(".")]


def open_set(path: Path) -> PreparedSet:
    """Opens a prepared set. path: its folder, as from `find`.

    Raises: UserError if the set is damaged, a file is missing, its format is not array_record, or its features.json
    names a Python class that is not part of TFDS.
    """
    # TFDS imports every class that features.json names, so a stranger's set could otherwise run code.
    for name in feature_classes(path):
        if not name.startswith("tensorflow_datasets."):
            raise UserError(f"{path / FEATURES} names {name[:80]!r}, which is not part of TFDS")

    import tensorflow_datasets as tfds

    try:
        builder: Builder = tfds.builder_from_directory(path)
    except Exception as error:  # TFDS raises nearly any exception for damaged files
        raise UserError(f"{path} cannot be opened as a TFDS set: {f'{error}.'.splitlines()[0]}") from error
    if tfds.core.FileFormat.ARRAY_RECORD not in builder.info.available_file_formats():
        raise UserError(
            f"{path} is not prepared as array_record, so its examples cannot be read in random order.",
            f"Prepare it elsewhere, python -m gen.data.prepare {builder.name} --data-dir DIR, and pass --data.data-dir DIR",
        )
    # TFDS cannot slice splits without examples.
    splits = {split: list(info.shard_lengths) for split, info in builder.info.splits.items() if info.num_examples}
    files = [Path(file) for split in splits for file in builder.info.splits[split].filepaths]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(
            f"{missing[0]} is missing or not a file: delete {path} and prepare it again, python -m gen.data.prepare {builder.name}"
        )
    return PreparedSet(builder, splits, files)


class Contents(NamedTuple):
    """Strings that identify the content of a prepared set. Digests are made of them."""

    names: list[str]
    """"NAME SIZE" of each file of examples. Older versions of gen made digests of these alone."""
    sums: list[str]
    """"NAME SIZE HASH" of each file of examples. HASH: the hash of its content."""
    info: list[str]
    """Hashes of dataset_info.json and features.json, which describe how the examples are stored."""


def describe_files(path: Path, files: list[Path], whole: bool) -> Contents:
    """Returns strings that identify the content of a prepared set. New and changed files are read as a whole.

    path: folder of the set. files: its files of examples. whole: compare every byte of unchanged files with the hashes
    from the first reading, not only a random sample.
    """
    info = [path / "dataset_info.json", *(each for each in [path / FEATURES] if each.exists())]
    paths = [*files, *info]
    facts = [facts_of(file.stat()) for file in paths]
    sums = content_sums(path.resolve(), [str(file.absolute()) for file in paths], facts, whole=whole)
    names = [f"{file.name} {each.size}" for file, each in zip(files, facts, strict=False)]
    return Contents(names, [f"{name} {sum_}" for name, sum_ in zip(names, sums, strict=False)], sums[len(files) :])


def feature_classes(path: Path) -> Iterator[str]:
    """Yields the names of the Python classes in the features.json of a prepared set. path: folder of the set."""
    try:
        values: list[object] = [gen_files.read_json(path / FEATURES)]
    except FileNotFoundError:
        return
    # A loop instead of a recursion: a stranger's file may be nested deeper than Python's stack.
    while values:
        value = values.pop()
        if isinstance(value, dict):
            yield from (value[key] for key in CLASS_KEYS if isinstance(value.get(key), str))
            values += value.values()
        elif isinstance(value, list):
            values += value


def prepare_command(name: str, data_dir: Path) -> str:
    """Returns the command line that prepares a set. In it, DIR is for the folder of the set's IDX files."""
    return f"python -m gen.data.prepare {name} --source DIR --data-dir {data_dir}"


def not_prepared_error(name: str, data_dir: str | None) -> UserError:
    """Returns the error for an image set that is not prepared.

    Its message lists prepared versions and configs of the set, and says how to prepare it.
    """
    folder = root(data_dir)
    infos = folder.glob(f"{re.split('[/:]', name)[0]}/**/dataset_info.json")
    near = sorted(info.parent.relative_to(folder).as_posix() for info in infos)
    return UserError(
        f"{name} is not prepared in {folder}{', where there is ' + ', '.join(near) if near else ''}.",
        f"{prepare_command(name, folder)} prepares it from the files in DIR."
        " After pip install 'gen[tensorflow]', the same command without --source downloads them",
    )
