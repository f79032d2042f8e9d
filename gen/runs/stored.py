"""Checks the file format of a checkpoint's arrays. Only the format that gen writes is accepted: zarr 2, compressed by Zstandard.

Orbax also reads other formats (zarr 3, OCDBT), compressors and filters. With some of them a file of a few megabytes unpacks to
gigabytes. So the format of each file is checked before Orbax opens any file.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from gen import files
from gen.errors import UserError

ARRAY = ".zarray"
"""Name of the file that describes an array (its shape, dtype and compression), in the array's folder."""
CHUNK = re.compile(r"\d+(\.\d+)*")
"""Names of the files with the content of an array. A file holds one chunk, and is named by the chunk's position, such as 0.1."""
FACTS = ("_METADATA", "_sharding", "commit_success.txt")
"""Other files that Orbax writes into the folder of an item (a field of the state)."""
WRITERS = "array_metadatas"
"""Sub-folder that Orbax writes into the folder of an item. It has a file for each host that wrote arrays."""
SIZES = {"|b1": 1, "|i1": 1, "|u1": 1, "<i2": 2, "<u2": 2, "<f2": 2, "bfloat16": 2, "<i4": 4, "<u4": 4, "<f4": 4}
SIZES |= {"<i8": 8, "<u8": 8, "<f8": 8}
"""{dtype as zarr names it: bytes per number}."""
FIXED = {"zarr_format": 2, "order": "C", "dimension_separator": ".", "fill_value": None, "filters": None}
"""Entries of .zarray that have the same value in all arrays of gen."""
VARYING = {"shape", "chunks", "dtype", "compressor"}
"""The other entries of .zarray."""
MAGIC = b"\x28\xb5\x2f\xfd"
"""First bytes of a Zstandard frame (RFC 8878, 3.1.1)."""
HEADER_BYTES = 18
"""Largest length of a frame's header, including the magic bytes."""


def check_format(step: Path, sizes: Mapping[str, int]) -> None:
    """Checks the files of a checkpoint, before Orbax reads them.

    step: folder of the checkpoint. sizes: {field of the state to read: count of numbers in its largest array}.

    Raises: UserError that names a file that is not as gen writes it, or that would unpack to more numbers.
    """
    _check_json(step / "_CHECKPOINT_METADATA")
    for item, most in sizes.items():
        if (step / item).is_dir():
            _check_json(step / item / "_METADATA")
        for folder, names in _folders(step / item):
            if folder.parent == step / item and folder.name == WRITERS:
                _check_writers(folder, names)
            else:
                _check_folder(folder, names, most, FACTS if folder == step / item else ())


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields each folder of an item with the names of its files."""
    for path, _, names in os.walk(folder):
        yield Path(path), sorted(names)


def _check_writers(folder: Path, names: list[str]) -> None:
    for name in names:
        if not re.fullmatch(r"process_\d+", name):
            raise _unknown(folder / name)
        _check_json(folder / name)


def _check_folder(folder: Path, names: list[str], most: int, facts: tuple[str, ...]) -> None:
    """Raises: UserError if a file is damaged, or is neither part of the folder's array nor named in `facts`.

    names: the files in the folder. most: largest count of numbers in an array.
    """
    is_array = ARRAY in names
    unpacked = _check_array(folder / ARRAY, most) if is_array else 0
    for name in set(names) & set(facts):
        # Orbax's own facts begin with "_", and are JSON.
        if name.startswith("_"):
            _check_json(folder / name)
    for name in sorted(set(names) - {*facts, ARRAY}):
        if not (is_array and CHUNK.fullmatch(name)):
            raise _unknown(folder / name)
        _check_chunk(folder / name, unpacked)


def _check_array(path: Path, most: int) -> int:
    """Checks a .zarray file. Returns the size of an unpacked chunk in bytes.

    Raises: UserError for another format, or if the array or a chunk has more than `most` numbers.
    """
    found = _check_json(path)
    shape, chunks, dtype, compressor = (found.get(name) for name in ("shape", "chunks", "dtype", "compressor"))
    same = found.keys() == FIXED.keys() | VARYING and all(found[name] == value for name, value in FIXED.items())
    packed = isinstance(compressor, dict) and compressor.get("id") == "zstd" and compressor.keys() <= {"id", "level"}
    if not (same and packed and isinstance(dtype, str) and dtype in SIZES):
        raise UserError(
            f"{path} is damaged: it is not an array as gen writes it (zarr 2, packed by zstd, without filters)"
        )
    if not (_is_shape(shape, 0) and _is_shape(chunks, 1) and len(shape) == len(chunks) and math.prod(shape) <= most):
        raise UserError(f"{path} is damaged: its shape is {str(shape)[:80]}")
    # zarr allocates a whole chunk before it reads the file.
    if math.prod(chunks) > most:
        raise UserError(f"{path} is damaged: its chunks are {str(chunks)[:80]}")
    return SIZES[dtype] * math.prod(chunks)


def _is_shape(value: object, least: int) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= least for n in value)


def _check_chunk(path: Path, unpacked: int) -> None:
    """Raises: UserError unless a file is exactly one Zstandard frame, whose header says that it unpacks to `unpacked` bytes."""
    with open(path, "rb") as file:
        frame = read_header(file.read(HEADER_BYTES))
        if frame is None or frame.unpacked != unpacked or _find_end(file, frame) != os.fstat(file.fileno()).st_size:
            raise UserError(f"{path} is damaged: it is not {unpacked:,} bytes of an array, packed by zstd")


class Frame(NamedTuple):
    """The header of a Zstandard frame."""

    unpacked: int
    """Size of the unpacked content, in bytes."""
    length: int
    """Size of the header, in bytes."""
    checksum: bool
    """Whether 4 bytes with a checksum follow the blocks."""


def read_header(content: bytes) -> Frame | None:
    """Reads the header of a Zstandard frame. content: its first HEADER_BYTES bytes, or all if it is shorter.

    None: it is not a frame, or the header does not give the unpacked size. Source: RFC 8878, 3.1.1.1.
    """
    if len(content) < 6 or not content.startswith(MAGIC):
        return None
    flags = content[4]
    # Bits 7 and 6: width of the size. Bit 5: no window byte follows. Bits 1 and 0: width of a dictionary id.
    single, width = flags >> 5 & 1, (flags >> 5 & 1, 2, 4, 8)[flags >> 6]
    start = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    size = content[start : start + width]
    if not width or len(size) < width:
        return None
    # A size in two bytes is stored minus 256.
    return Frame(int.from_bytes(size, "little") + 256 * (width == 2), start + width, bool(flags & 4))


def _find_end(file: BinaryIO, frame: Frame) -> int | None:
    """Returns the position in the file at which a frame ends, without unpacking it.

    None: a block is cut off, or the blocks are larger than the header says. Source: RFC 8878, 3.1.1.2.
    """
    at, unpacked = frame.length, 0
    while True:
        file.seek(at)
        head = file.read(3)
        value = int.from_bytes(head, "little")
        last, kind, size = value & 1, value >> 1 & 3, value >> 3
        # Kinds: 0 raw, 1 one repeated byte, 2 compressed, 3 reserved. `size` is the unpacked size of kinds 0 and 1, and the packed
        # size of kind 2, whose unpacked size is not known here.
        unpacked += size if kind != 2 else 0
        if len(head) < 3 or kind == 3 or unpacked > frame.unpacked or (not last and size == 0):
            return None
        # A block of one repeated byte (1) takes one byte in the file.
        at += 3 + (1 if kind == 1 else size)
        if last:
            return at + 4 * frame.checksum


def _check_json(path: Path) -> dict[str, Any]:
    """Returns the JSON object in a file. Raises: UserError if it is missing, too large, nested too deeply, or not a JSON object."""
    try:
        found = files.read_json(path)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: it is not a JSON object")
    return found


def _unknown(path: Path) -> UserError:
    return UserError(f"{path} is not a file that gen writes into a checkpoint; only gen's own format is read (zarr 2)")
